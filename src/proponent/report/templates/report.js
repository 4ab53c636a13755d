// The page reads without this. It sorts tables and copies the command.
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const amount = (text) => {
        const power = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹";
        const ascii = text.replaceAll("−", "-").replaceAll(",", "").replace("×10", "e");
        return parseFloat([...ascii].map((c) => (power.includes(c) ? "-0123456789"[power.indexOf(c)] : c)).join(""));
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [s, t] = [a.cells[column].textContent.trim(), b.cells[column].textContent.trim()];
        const [x, y] = [amount(s), amount(t)];
        const order = Number.isNaN(x) || Number.isNaN(y) ? s.localeCompare(t) : x - y;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
for (const block of document.querySelectorAll("pre.command")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.textContent);
    button.textContent = "Copied";
  });
  block.after(button);
}
