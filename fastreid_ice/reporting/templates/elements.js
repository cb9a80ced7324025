const get = (id) => document.getElementById(id);

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

function image(source, alt) {
  const made = new Image();
  made.loading = "lazy";
  made.alt = alt;
  made.addEventListener("error", () => {
    const missing = element("div", "missing or unreadable");
    missing.className = "missing";
    made.replaceWith(missing);
  });
  made.src = source;
  return made;
}
