(function () {
  "use strict";
  {% include "elements.js" %}
  const answer = get("answer"), found = get("found"), query = get("query"), file = get("file"), form = get("options");
  const pictures = []; // those of this visit; history.state is the number of one
  let running = new AbortController(), preview = "";

  // The address is the search: the row of an image, and the options. A picture itself cannot be in it.
  const asked = () => new URLSearchParams(location.search);

  function options() {
    const given = Array.from(new FormData(form)).filter(([, value]) => value !== "");
    return new URLSearchParams(given);
  }

  function address(row) {
    const given = options();
    if (row !== null) given.set("row", row);
    return "/?" + given;
  }

  function fill() {
    const given = asked();
    for (const input of form.elements) {
      if (input.type === "checkbox") input.checked = given.get(input.name) === input.value;
      else input.value = given.get(input.name) ?? input.defaultValue ?? "";
    }
  }

  function say(sentence, failed) {
    answer.textContent = sentence;
    answer.classList.toggle("warning", Boolean(failed));
  }

  const inCamera = (camera) => (camera === "" ? "camera not known" : "camera " + camera);

  function tile(match) {
    const cosine = match.similarity.toFixed(2);
    const picture = image("/images/" + match.row, `rank ${match.rank}, cosine ${cosine}, ${inCamera(match.camera)}`);
    const words = [match.camera && "cam " + match.camera, match.distance.toFixed(3), match.name];
    const figure = element("figure", picture, element("figcaption", ...words.map((word) => element("span", word))));
    const link = element("a", figure);
    link.href = address(match.row);
    link.title = match.name;
    return element("li", link);
  }

  function show(content, row, picture) {
    const { name, camera } = content.query, count = content.matches.length;
    preview = picture ? URL.createObjectURL(picture) : "";
    query.replaceChildren(
      image(preview || "/images/" + row, "the picture that was searched for"),
      element("figcaption", `${name || "picture"}, ${inCamera(camera)}`),
    );
    query.hidden = false;
    found.replaceChildren(...content.matches.map(tile));
    const results = count === 1 ? "1 result" : count === 0 ? "Nothing was found" : count + " results";
    say(`${results} for ${name || "this picture"}. ${content.words}`);
  }

  function clear() {
    running.abort();
    URL.revokeObjectURL(preview);
    query.hidden = true;
    query.replaceChildren();
    found.replaceChildren();
    say("");
  }

  async function search() {
    clear();
    const { signal } = (running = new AbortController());
    const given = asked(), row = given.get("row"), picture = pictures[history.state];
    if (row === null && history.state === null) return;
    if (row === null && !picture) return say("The picture is not here any more; choose it again.", true);
    if (picture && picture.size > +file.dataset.most)
      return say(`${picture.name} has more than ${file.dataset.most / 2 ** 20} MB; make it smaller.`, true);
    if (picture) given.set("name", picture.name);
    say("Searching …");
    try {
      const response = await fetch("/search?" + given, picture ? { method: "POST", body: picture, signal } : { signal });
      const content = await response.json();
      if (signal.aborted) return;
      if (content.error) say(`${picture ? picture.name : "This search is not possible"}: ${content.error}.`, true);
      else show(content, row, picture);
    } catch (error) {
      if (!signal.aborted) say("The server did not answer; is it still running?", true);
    }
  }

  function choose(files) {
    if (files.length === 0) return say("Only the file of a picture can be searched for.", true);
    history.pushState(pictures.push(files[0]) - 1, "", address(null));
    search();
  }

  file.addEventListener("change", () => {
    if (file.files.length) choose([...file.files]);
    file.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    get("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) get("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    get("drop").classList.remove("over");
    choose(event.dataTransfer.files);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => {
    history.replaceState(history.state, "", address(asked().get("row")));
    search();
  });
  found.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    history.pushState(null, "", link.href);
    search();
    answer.scrollIntoView();
    answer.focus({ preventScroll: true }); // the link that had it is gone
  });
  addEventListener("popstate", () => {
    fill();
    search();
  });
  fill();
  search();
})();
