/* Elements. Text is set as text: nothing of the user's program is read as markup. */

/** An element with attributes, of which "on…" listen, and children: elements, texts, or nothing. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

/** An element by its id. */
function byId(id) {
  return document.getElementById(id);
}

/** "1 node", "2 nodes". */
function many(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}
