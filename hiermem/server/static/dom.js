// Elements and words. All text goes in as text: nothing that a document or a name holds is ever markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A line drawing of 20 by 20. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const CROSS = "m5 5 10 10M15 5 5 15";

export const number = (value) => value.toLocaleString("en");

/** A number in few characters, such as 12.3k. */
export function brief(value) {
  if (value < 10000) return number(value);
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  return short.format(value).replace("K", "k");
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let unit = -1;
  do { value /= 1024; unit += 1; } while (value >= 1024 && unit < units.length - 1);
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** The place of a source in words. */
export function place(source) {
  const parts = [];
  if (source.page) parts.push(`page ${number(source.page)}`);
  else if (source.line) parts.push(`line ${number(source.line)}`);
  if (source.chapter) parts.push(source.chapter);
  return parts.join(" · ");
}

/** Tell those who do not see the page. */
export function announce(text) {
  $("news").textContent = "";
  requestAnimationFrame(() => { $("news").textContent = text; });
}

/** Show an error until it is closed, or for a while. */
export function complain(text) {
  const close = make("button", { class: "quiet icon", type: "button", "aria-label": "Close message" }, icon(CROSS));
  const toast = make("div", { class: "toast" }, make("span", {}, text), close);
  close.addEventListener("click", () => toast.remove());
  setTimeout(() => toast.remove(), 12000);
  $("toasts").append(toast);
}

/** Let the buttons with `data-close` close their dialog, and a click beside it, too. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
  }
}
