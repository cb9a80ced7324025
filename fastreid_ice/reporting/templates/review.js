(function () {
  "use strict";
  {% include "elements.js" %}
  {% include "choices.js" %}
  const VIEWS = ["questions", "clusters", "cluster"];
  const answer = get("answer"), pair = get("pair"), list = get("list"), images = get("images");
  let view = "questions", answered = 0, pending = 0, last = Promise.resolve();
  let question = null, built = ["", []]; // the question on the page; the next one, as text, and what shows it
  let place = 0; // the number of the question from which on open ones are shown
  const earlier = new Map(); // how many answers there were then -> the question of the last of them, in this visit
  let cluster = null; // the one on the page

  function say(sentence, failed) {
    answer.textContent = sentence;
    answer.classList.toggle("warning", Boolean(failed));
  }

  // The content of the server's answer; an error has its sentence.
  async function ask(path, body) {
    const options = body && { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    let content;
    try {
      content = await (await fetch(path, options)).json();
    } catch {
      throw new Error("The server did not answer; is it still running? Start it again, then load this page again");
    }
    if (content.error) throw new Error(content.error);
    const { progress } = content;
    answered = progress.answered;
    get("progress").textContent = `${answered} answered, ${progress.open} of ${progress.asked} questions open.`;
    get("last").textContent = progress.last && "Last: " + progress.last;
    get("undo").disabled = answered === 0;
    return content;
  }

  // One piece of work after the other. An answer that comes while there is some is dropped, so that a key that is
  // pressed twice does not answer the next question; a change of the view waits.
  function work(action, waits) {
    if (pending && !waits) return;
    pending += 1;
    last = last
      .then(action)
      .catch((error) => say(error.message + ".", true))
      .finally(() => (pending -= 1));
  }

  const thumbnail = (row, alt) => image("/images/" + row, alt);

  function marked(marks) {
    const mark = element("span", marks.join(", "));
    mark.className = "mark";
    return mark;
  }

  // Questions.

  function side(shown, where) {
    const eager = thumbnail(shown.row, `${where}: ${shown.name}`);
    eager.loading = "eager"; // also before it is on the page
    const camera = shown.camera && `camera ${shown.camera}, `;
    const words = `${camera}cluster ${shown.cluster} of ${shown.size} images, ${shown.name} `;
    const large = element("div", eager, element("figcaption", words, marked(shown.marks)));
    const beside = element("div", ...shown.beside.map((row) => thumbnail(row, "")));
    beside.className = "beside";
    const figure = element("figure", large, beside);
    figure.className = "side";
    return figure;
  }

  function build(next) {
    const text = JSON.stringify(next), [left, right] = next.images;
    return [text, built[0] === text ? built[1] : [side(left, "left"), side(right, "right")]];
  }

  // Shows the first open question from a number on, and says what was done.
  async function showQuestions(start, done = "") {
    const { questions, progress } = await ask("/questions?from=" + start);
    question = questions[0] ?? null;
    place = question ? question.number : 0;
    pair.replaceChildren(...(question ? build(question)[1] : []));
    get("reply").hidden = get("names").hidden = !question;
    get("names").reset();
    if (questions[1]) built = build(questions[1]); // its images load meanwhile
    if (question) say(done);
    else if (progress.open === 0) say(`${done} No question is open. What to run next is below.`);
    else say(`${done} The other ${progress.open} questions were skipped; Questions begins with them again.`);
  }

  const left = () => question.images[0].row, right = () => question.images[1].row;

  async function reply(rows, words) {
    if (!question) return;
    const { number } = question;
    await ask("/answers", { rows });
    earlier.set(answered, number);
    await showQuestions(number, `Saved: ${words}.`);
  }

  async function skip() {
    if (!question) return;
    await showQuestions(question.number + 1, "Skipped.");
  }

  async function undo() {
    if (answered === 0) return say("There is no answer to take back.");
    const number = earlier.get(answered) ?? (view === "questions" ? 0 : place), done = "The last answer was taken back.";
    await ask("/take_back", { answered });
    if (view === "questions") return showQuestions(number, done);
    place = number;
    if (view === "cluster") await showCluster(cluster.number, 0);
    say(done);
  }

  // Clusters.

  function card({ number, size, sample, names }) {
    const tiles = element("div", ...sample.map((row) => thumbnail(row, "")));
    tiles.className = "tiles";
    const link = element("a", element("h3", `Cluster ${number}, ${size} images `, marked(names)), tiles);
    link.className = "card";
    link.href = "#cluster=" + number;
    return link;
  }

  async function showClusters(start) {
    const { clusters, total } = await ask(`/clusters?order=${get("order").value}&from=${start}`);
    if (start === 0) list.replaceChildren();
    list.append(...clusters.map(card));
    get("more-clusters").hidden = list.children.length >= total;
  }

  function tile({ row, name, camera, marks }) {
    const words = [camera && "cam " + camera, name].filter(Boolean).map((word) => element("span", word));
    const button = element("button", thumbnail(row, ""), ...words, marked(marks));
    button.type = "button";
    button.className = "tile";
    button.dataset.row = row;
    button.setAttribute("aria-pressed", "false");
    return button;
  }

  async function showCluster(number, start) {
    const { cluster: found } = await ask(`/clusters/${number}?from=${start}`);
    if (start === 0) images.replaceChildren();
    cluster = found;
    get("title").replaceChildren(`Cluster ${found.number}, ${found.size} images `, marked(found.names));
    images.append(...found.images.map(tile));
    get("more-images").hidden = images.children.length >= found.size;
  }

  const chosen = () => Array.from(images.querySelectorAll("[aria-pressed=true]"), (button) => +button.dataset.row);

  async function correct(rows, words) {
    const place = document.activeElement.dataset.row;
    await ask("/answers", { rows });
    await showCluster(cluster.number, 0);
    say(`Saved: ${words}.`);
    if (place !== undefined) images.querySelector(`[data-row="${place}"]`)?.focus();
  }

  async function choose(id) {
    const { rows, needs, done } = CHOICES[id];
    const found = rows(chosen(), () => cluster.medoid);
    if (!found.length) return say(needs);
    await correct(found, done(found));
  }

  async function merge() {
    const number = get("merge").value.trim();
    const { cluster: other } = await ask("/clusters/" + encodeURIComponent(number));
    if (other.medoid === cluster.medoid) return say("This is the same cluster.", true);
    await correct([[cluster.medoid, "same", other.medoid]], `clusters ${cluster.number} and ${number} are one person`);
    get("merge").value = "";
  }

  async function name() {
    const given = get("person").value.trim();
    await correct([[cluster.medoid, "person", given]], given);
    get("person").value = "";
  }

  // Views: the address of the page names the one that is shown, so that the back button works.

  async function show() {
    const [name, number] = location.hash.slice(1).split("=");
    const wanted = VIEWS.includes(name) ? name : "questions";
    say("");
    if (wanted === "questions") await showQuestions(place);
    else if (wanted === "clusters") await showClusters(0);
    else await showCluster(number, 0);
    view = wanted;
    for (const id of VIEWS) get(id).hidden = id !== view;
    for (const link of document.querySelectorAll("nav a"))
      if (link.hash === "#" + view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
  }

  function go(hash) {
    if (location.hash === hash) work(show, true);
    else location.hash = hash;
  }

  const click = (id, action) => get(id).addEventListener("click", () => work(action));
  const keys = {
    questions: { S: "same", D: "different", N: "nobody-left", M: "nobody-right", J: "skip", L: "name-left", R: "name-right" },
    clusters: {},
    cluster: { W: "wrong", X: "split", P: "nobody", G: "merge", T: "person" },
  };
  click("undo", undo);
  click("same", () => reply([[left(), "same", right()]], "same"));
  click("different", () => reply([[left(), "different", right()]], "different"));
  click("nobody-left", () => reply([[left(), "nobody", ""]], "no person on the left"));
  click("nobody-right", () => reply([[right(), "nobody", ""]], "no person on the right"));
  click("skip", skip);
  for (const id in CHOICES) click(id, () => choose(id));
  click("more-clusters", () => showClusters(list.children.length));
  click("more-images", () => showCluster(cluster.number, images.children.length));
  images.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  });
  get("order").addEventListener("change", () => work(() => showClusters(0)));

  // A form of several fields is not sent by Enter alone: each field has its own meaning.
  const fields = {
    "name-left": ({ value }) => reply([[left(), "person", value]], value),
    "name-right": ({ value }) => reply([[right(), "person", value]], value),
    merge,
    person: name,
  };
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (target.matches("input")) {
      if (key === "Escape") target.blur();
      if (key !== "Enter") return;
      event.preventDefault();
      if (target.id === "number") go("#cluster=" + target.value.trim());
      else if (target.id in fields) {
        work(() => fields[target.id](target));
        target.blur();
      }
      return;
    }
    if (target.matches("select") || event.repeat) return;
    const letter = key.toUpperCase();
    const id = letter === "U" ? "undo" : keys[view][letter];
    if (letter === "1") go("#questions");
    else if (letter === "2") go("#clusters");
    else if (id) {
      event.preventDefault(); // the letter does not go into the field
      if (get(id).matches("input")) get(id).focus();
      else get(id).click();
    }
  });
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector("nav").addEventListener("click", (event) => {
    if (event.target.closest("a")?.hash === "#questions" && !question) work(() => showQuestions(0), true);
  });
  addEventListener("hashchange", () => work(show, true));
  work(async () => {
    await ask("/progress");
    await show();
  });
})();
