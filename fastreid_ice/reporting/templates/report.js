(async function () {
  "use strict";
  const SHOWN = 100;
  {% include "elements.js" %}
  const answer = get("answer"), found = get("found"), form = get("search");
  if (!("DecompressionStream" in window)) {
    answer.textContent = "This browser is too old for the search; the rest of the page works.";
    return;
  }
  const bytes = Uint8Array.from(atob(get("index").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const index = await new Response(stream).json();
  const lower = index.names.map((name) => name.toLowerCase());
  index.cameraNames.forEach((name, number) => get("camera").add(new Option(name, number)));
  const figures = Array.from(document.querySelectorAll("[data-row]"), (figure) => ({ figure, row: +figure.dataset.row }));
  const pictures = new Map(figures.map(({ figure, row }) => [row, figure.querySelector("img")]));

  function cell(tr, content) {
    tr.insertCell().append(content);
  }

  function small(row) {
    if (!(row in index.pictures)) return "";
    const image = new Image();
    image.alt = "";
    image.src = "data:image/webp;base64," + index.pictures[row];
    return image;
  }

  function show(rows) {
    const body = found.querySelector("tbody");
    body.replaceChildren();
    for (const row of rows.slice(0, SHOWN)) {
      const tr = body.insertRow(), picture = pictures.get(row);
      cell(tr, picture ? picture.cloneNode() : small(row));
      const name = document.createElement("th");
      name.scope = "row";
      name.append(index.names[row]);
      tr.append(name);
      cell(tr, index.labels[row] < 0 ? "noise" : index.labels[row]);
      cell(tr, index.cameraNames[index.cameras[row]] ?? "–");
      cell(tr, index.distances[row] ?? "–");
    }
  }

  function search() {
    const name = get("name").value.trim().toLowerCase();
    const cluster = get("cluster").value.trim().toLowerCase().replace(/^cluster\s*/, "");
    const camera = get("camera").value;
    const label = cluster === "noise" ? -1 : /^\d+$/.test(cluster) ? +cluster : NaN;
    const active = name !== "" || cluster !== "" || camera !== "";
    const fits = (row) => lower[row].includes(name) && (cluster === "" || index.labels[row] === label)
      && (camera === "" || index.cameras[row] === +camera);
    const rows = active ? Array.from(lower.keys()).filter(fits) : [];
    const kept = new Set(rows);
    for (const { figure, row } of figures) figure.hidden = active && !kept.has(row);
    for (const part of document.querySelectorAll(".group, .sheet"))
      part.hidden = active && !part.querySelector("[data-row]:not([hidden])");
    show(rows);
    found.hidden = rows.length === 0;
    const more = rows.length > SHOWN ? ", the first " + SHOWN + ":" : "";
    answer.textContent = active ? rows.length + " of " + lower.length + " images" + more : "";
  }

  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(search));
  document.addEventListener("click", (event) => {
    const cluster = event.target.dataset.cluster;
    if (cluster === undefined) return;
    form.reset();
    get("cluster").value = cluster;
    setTimeout(() => {
      search();
      form.scrollIntoView();
      answer.focus({ preventScroll: true });
    });
  });
  {% include "correct.js" %}
})();
