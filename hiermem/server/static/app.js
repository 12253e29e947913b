// The page of a library: state of the service, colours, keys, and the three parts.

import * as api from "./api.js";
import { $, complain, prepareDialogs } from "./dom.js";
import { Library } from "./library.js";
import { Reader } from "./reader.js";
import { Talk } from "./talk.js";

const THEME = "hiermem.theme";
const WORDS = {
  connecting: "Connecting", loading: "Loading the model", ready: "Ready", reading: "Reading", offline: "Offline",
  failed: "Not working", ending: "Ending", locked: "Key needed",
};

const reader = new Reader();
const library = new Library({ onChange: () => { showState(); talk?.update(); } });
const talk = new Talk({ library, reader });
let state = "connecting";

function showState() {
  const shown = state === "ready" && library.reading.length ? "reading" : state;
  if ($("state").dataset.state === shown) return;
  $("state").dataset.state = shown;
  $("state-text").textContent = WORDS[shown] ?? shown;
}

async function watch() {
  const before = state;
  try {
    const status = await api.get("/api/status");
    state = status.state;
    library.limit = status.limits.upload_bytes;
    $("question").maxLength = status.limits.question_characters;
    $("library-name").textContent = status.library;
    document.title = `${status.library} · hiermem`;
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    state = error.status === 401 ? "locked" : error.status === 429 ? before : "offline";
  }
  talk.ready = state === "ready";
  if (state === "ready" && before !== "ready") {
    await library.refresh();
    await talk.restore();
  }
  showState();
  talk.update();
  if (state !== "locked") setTimeout(watch, state === "ready" ? 10000 : 1500);
}

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => $("theme").setAttribute("aria-pressed", String(isDark()));
  const kept = localStorage.getItem(THEME);
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem(THEME, root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  show();
}

function wireKey() {
  const dialog = $("key-dialog");
  const use = () => {
    if (!/^[\x20-\x7e]+$/.test($("key-input").value.trim())) { complain("A key is made of plain characters."); return; }
    api.key.set($("key-input").value.trim());
    $("key-input").value = "";
    dialog.close();
    watch();
  };
  api.whenRefused(() => {
    state = "locked";
    showState();
    $("key").hidden = false;
    if (!dialog.open) dialog.showModal();
  });
  $("key").hidden = !api.key.get();
  $("key").addEventListener("click", () => dialog.showModal());
  $("key-form").addEventListener("submit", (event) => { event.preventDefault(); use(); });
}

function wireMenu() {
  const set = (open) => {
    $("library").classList.toggle("open", open);
    $("menu").setAttribute("aria-expanded", String(open));
  };
  $("menu").addEventListener("click", () => set(!$("library").classList.contains("open")));
  return () => {
    if (!$("library").classList.contains("open")) return false;
    set(false);
    $("menu").focus();
    return true;
  };
}

function wireKeyboard(closeMenu) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      if (reader.isOpen) reader.close();
      else closeMenu();
      return;
    }
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      closeMenu();
      $("question").focus();
    }
  });
}

prepareDialogs();
wireTheme();
wireKey();
wireKeyboard(wireMenu());
talk.update();
watch();
