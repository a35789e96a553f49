// A search field hides the rows of its table that lack one of its words.
for (const box of document.querySelectorAll(".searchable")) {
  const field = box.querySelector("input");
  const matches = box.querySelector("output");
  const rows = [...box.querySelectorAll("tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  field.parentElement.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    matches.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
}
