// Every search field leaves those rows of its table in which all of its words occur.
for (const box of document.querySelectorAll(".searchable")) {
  const field = box.querySelector("input");
  const found = box.querySelector("output");
  const rows = [...box.querySelectorAll("tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  field.parentElement.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      left += !row.hidden;
    });
    found.textContent = words.length ? `${left} of ${rows.length}` : "";
  });
}
