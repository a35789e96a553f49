// A page that is opened from the disk may start no worker, and the search is one. It runs in a hidden frame then.
"use strict"
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.ready = new Promise(resolve => {
        const { document } = this.inside
        this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
        this.inside.importScripts = (...urls) => urls.reduce((done, url) => done.then(() => load(document, url)), Promise.resolve())
        load(document, url).then(resolve)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }

function load(document, url) {
  return new Promise(resolve => {
    const script = document.createElement("script")
    script.src = url
    script.onload = resolve
    document.body.append(script)
  })
}
