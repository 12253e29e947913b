// Documents: they are added, watched while they are read, and removed.

import * as api from "./api.js";
import { $, CROSS, announce, brief, bytes, complain, icon, make, number } from "./dom.js";

const PAPER_BIN = "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6M8.5 9v4.5M11.5 9v4.5";
const KINDS = { pdf: "PDF", epub: "EPUB", html: "HTML", docx: "DOCX", markdown: "Markdown", text: "Text" };

export class Library {
  constructor({ onChange }) {
    this.documents = [];
    this.uploads = []; // on their way to the service
    this.limit = Infinity;
    this.onChange = onChange;
    this.timer = 0;
    this.states = new Map(); // by id, to tell what has changed
    this.sending = false;
    this.wire();
  }

  wire() {
    const picker = $("picker");
    $("choose").addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => { this.add([...picker.files]); picker.value = ""; });
    $("paste").addEventListener("click", () => { $("paste-dialog").showModal(); $("paste-text").focus(); });
    $("paste-add").addEventListener("click", () => this.addPasted());
    $("remove-yes").addEventListener("click", () => this.removeChosen());
    this.wireDrop();
  }

  wireDrop() {
    let depth = 0;
    const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const show = (shown) => { $("drop").hidden = !shown; if (!shown) depth = 0; };
    addEventListener("dragenter", (event) => { if (holdsFiles(event)) { depth += 1; show(true); } });
    addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) show(false); });
    addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); });
    addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      show(false);
      this.add([...event.dataTransfer.files]);
    });
  }

  addPasted() {
    const text = $("paste-text").value;
    if (!text.trim()) { $("paste-text").focus(); return; }
    const name = $("paste-name").value.trim() || "Pasted text";
    this.add([new File([text], /\.(txt|md)$/i.test(name) ? name : `${name}.txt`, { type: "text/plain" })]);
    $("paste-text").value = $("paste-name").value = "";
    $("paste-dialog").close();
  }

  add(files) {
    for (const file of files) {
      if (file.size > this.limit) complain(`${file.name} is larger than ${bytes(this.limit)}.`);
      else if (!file.size) complain(`${file.name} is empty.`);
      else this.uploads.push({ file, share: 0 });
    }
    this.show();
    this.sendAll();
  }

  async sendAll() {
    if (this.sending) return;
    this.sending = true;
    while (this.uploads.length) {
      const upload = this.uploads[0];
      try {
        await api.upload(upload.file, (share) => { upload.share = share; this.show(); });
        announce(`${upload.file.name} was uploaded and will be read.`);
      } catch (error) {
        complain(`${upload.file.name}: ${error.message}`);
      }
      this.uploads.shift();
      await this.refresh();
    }
    this.sending = false;
  }

  /** Ask the service for the documents, soon again while something is read. */
  async refresh() {
    clearTimeout(this.timer);
    let busy = true;
    try {
      const { documents, memory } = await api.get("/api/documents");
      this.documents = documents;
      this.tell();
      this.show();
      this.showMemory(memory);
      busy = this.reading.length > 0;
    } catch (error) {
      if (!(error instanceof api.Failure)) throw error;
      busy = error.status !== 401 && error.status !== 0;
    }
    this.timer = setTimeout(() => this.refresh(), busy ? 1000 : 12000);
  }

  get reading() { return this.documents.filter((each) => ["waiting", "reading"].includes(each.state)); }
  get read() { return this.documents.filter((each) => each.state === "done"); }

  tell() {
    for (const { id, name, state } of this.documents) {
      const before = this.states.get(id);
      if (before && before !== state && state === "done") announce(`${name} was read.`);
      if (before && before !== state && state === "failed") announce(`${name} could not be read.`);
      this.states.set(id, state);
    }
  }

  show() {
    const list = $("documents");
    const rows = [...this.documents.map((each) => this.row(each)), ...this.uploads.map((each) => this.sendingRow(each))];
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    list.replaceChildren(...rows);
    if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
    $("no-documents").hidden = rows.length > 0;
    this.onChange();
  }

  row(entry) {
    const busy = entry.state === "waiting" || entry.state === "reading";
    const bin = make("button", {
      class: "quiet icon", type: "button", "data-id": entry.id, title: "Remove",
      "aria-label": `Remove ${entry.name}`, on: { click: () => this.askToRemove(entry) },
    }, icon(entry.state === "failed" ? CROSS : PAPER_BIN));
    return make("li", { class: `document ${entry.state}` },
      make("span", { class: "document-name", title: entry.name }, entry.name),
      make("span", { class: "document-facts" }, facts(entry)),
      bin,
      busy ? make("progress", { max: 1, value: entry.progress, "aria-label": `Reading ${entry.name}` }) : null);
  }

  sendingRow({ file, share }) {
    return make("li", { class: "document sending" },
      make("span", { class: "document-name" }, file.name),
      make("span", { class: "document-facts" }, share < 1 ? `Uploading, ${Math.round(share * 100)} %` : "Storing"),
      make("progress", { max: 1, value: share, "aria-label": `Uploading ${file.name}` }));
  }

  showMemory(memory) {
    const rows = [
      ["documents", number(memory.documents)], ["on disk", bytes(memory.bytes)],
      ["tokens", brief(memory.tokens)], ["segments", brief(memory.segments)],
    ];
    $("memory").replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  askToRemove(entry) {
    if (entry.state === "failed") { this.removeNow(entry); return; }
    this.chosen = entry;
    $("remove-text").textContent = `${entry.name} and all that was read of it will be deleted from this library.`;
    $("remove-dialog").showModal();
  }

  removeChosen() {
    $("remove-dialog").close();
    this.removeNow(this.chosen);
  }

  async removeNow(entry) {
    try {
      await api.remove(`/v1/files/${encodeURIComponent(entry.id)}`);
      announce(`${entry.name} was removed.`);
    } catch (error) {
      complain(`${entry.name}: ${error.message}`);
    }
    await this.refresh();
    $("choose").focus();
  }
}

function facts(entry) {
  if (entry.state === "waiting") return "Waiting to be read";
  if (entry.state === "reading") return `Reading, ${Math.round(entry.progress * 100)} %`;
  if (entry.state === "failed") return entry.error;
  const parts = [KINDS[entry.kind] ?? entry.kind];
  if (entry.pages) parts.push(`${number(entry.pages)} ${entry.pages === 1 ? "page" : "pages"}`);
  parts.push(`${brief(entry.tokens)} tokens`);
  return parts.join(" · ");
}
