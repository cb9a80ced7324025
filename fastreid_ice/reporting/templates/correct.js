// The sheets become a place to correct: chosen images become rows of corrections.csv, which the page offers to save. Rows
// are kept in the page, and in the browser's storage of this clustering where it has one.
const bar = get("bar"), said = get("said");
const KEYS = { W: "wrong", X: "split", P: "nobody", U: "undo", S: "save", G: "merge", T: "person" };
const STORED = "fastreid-ice corrections " + get("index").textContent.slice(-12); // its checksum and its length
const chosen = new Set();
let on = false, rows = stored();
{% include "choices.js" %}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? [];
  } catch {
    return []; // without storage the rows last as long as the page
  }
}

function keep(more, words) {
  rows = more;
  chosen.clear();
  try {
    localStorage.setItem(STORED, JSON.stringify(rows));
  } catch {}
  draw();
  said.textContent = words;
}

const medoid = (row) => index.medoids[index.labels[row]] ?? row;
const last = () => Array.from(chosen).pop();

// What the rows say of an image, in words.
function marks(row) {
  const found = rows.filter(([image, relation, other]) => image === row || (other === row && relation !== "person"));
  return found.map(([, relation, other]) => ({ person: other, nobody: "no person" })[relation] ?? relation).join(", ");
}

function draw() {
  for (const { figure, row } of figures) {
    let mark = figure.querySelector(".mark");
    if (!mark) figure.querySelector("figcaption").append((mark = element("span")));
    mark.className = "mark";
    mark.textContent = marks(row);
    if (on) figure.setAttribute("aria-pressed", chosen.has(row));
  }
  get("rows").textContent = rows.length + (rows.length === 1 ? " correction" : " corrections");
  get("undo").disabled = get("save").disabled = rows.length === 0;
}

// A group is one stop of the Tab key; the arrow keys move within it.
function stops() {
  if (!on) return;
  for (const group of document.querySelectorAll(".tiles")) {
    const first = group.querySelector("[data-row]:not([hidden])");
    for (const figure of group.children) figure.tabIndex = figure === first ? 0 : -1;
  }
}

function beside(figure, step) {
  do figure = figure[step];
  while (figure?.hidden);
  return figure;
}

function turn(wanted) {
  on = wanted;
  bar.hidden = !on;
  get("correct").setAttribute("aria-pressed", on);
  chosen.clear();
  for (const { figure } of figures)
    if (on) figure.setAttribute("role", "button");
    else for (const name of ["role", "tabindex", "aria-pressed"]) figure.removeAttribute(name);
  stops();
  draw();
  said.textContent = "";
}

function choose(figure) {
  const row = +figure.dataset.row;
  if (!chosen.delete(row)) chosen.add(row);
  draw();
  said.textContent = chosen.size + " chosen";
}

// Rows of the chosen images' cluster as a whole, of which its medoid is an example.
const merge = (text) => {
  const number = text.toLowerCase().replace(/^cluster\s*/, ""), other = index.medoids[number];
  if (!Object.hasOwn(index.medoids, number)) said.textContent = "There is no cluster " + text + ".";
  else if (other === medoid(last())) said.textContent = "This is the same cluster.";
  else keep([...rows, [medoid(last()), "same", other]], `Clusters ${index.labels[last()]} and ${number} are one person.`);
};
const fields = { merge, person: (text) => keep([...rows, [medoid(last()), "person", text]], text + ".") };

// A file of corrections. Bytes of a name that are not UTF-8 are half letters here, as Python reads them.
function csv() {
  const path = (row) => index.odd[row] ?? index.folder + index.names[row];
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const line = ([image, relation, other]) => [path(image), relation, typeof other === "number" ? path(other) : other];
  const text = [["image", "relation", "other"], ...rows.map(line)].map((line) => line.map(quoted).join(",") + "\n").join("");
  const parts = text.split(/([\udc80-\udcff])/u);
  return new Blob(parts.map((part, number) => (number % 2 ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : part)), { type: "text/csv" });
}

function save() {
  const link = element("a");
  link.href = URL.createObjectURL(csv());
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  said.textContent = `Saved ${get("rows").textContent}.`;
}

get("correction").hidden = false;
for (const kind of ["input", "reset"]) form.addEventListener(kind, () => setTimeout(stops));
get("correct").addEventListener("click", () => turn(!on));
get("save").addEventListener("click", save);
get("undo").addEventListener("click", () => keep(rows.slice(0, -1), "The last correction was taken back."));
for (const id in CHOICES)
  get(id).addEventListener("click", () => {
    const found = CHOICES[id].rows([...chosen], medoid);
    if (found.length) keep([...rows, ...found], CHOICES[id].done(found) + ".");
    else said.textContent = CHOICES[id].needs;
  });
document.addEventListener("click", (event) => {
  const figure = event.target.closest("[data-row]");
  if (on && figure) choose(figure);
});
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (target.matches("input, select")) {
    if (target.id in fields && key === "Escape") target.blur();
    if (!(target.id in fields) || key !== "Enter") return;
    event.preventDefault(); // it is no form of one field
    const text = target.value.trim();
    if (!chosen.size || index.labels[last()] < 0) said.textContent = "Choose an image of the cluster first.";
    else if (text) fields[target.id](text);
    target.value = "";
    target.blur();
    return;
  }
  const figure = on && target.closest("[data-row]");
  const step = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[key];
  if (key.toUpperCase() === "C" && !event.repeat) turn(!on);
  if (figure && step) beside(figure, step)?.focus();
  if (figure && (key === " " || key === "Enter")) choose(figure);
  if (figure && (step || key === " ")) event.preventDefault(); // no scrolling
  const control = on && !event.repeat && get(KEYS[key.toUpperCase()]);
  if (!control) return;
  event.preventDefault(); // the letter does not go into the field
  if (control.matches("input")) control.focus();
  else control.click();
});
draw();
