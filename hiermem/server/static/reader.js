// The pane beside the conversation: a passage in its document, and on from there.

import * as api from "./api.js";
import { $, announce, complain, make, number, place } from "./dom.js";

const BEFORE = 1500; // characters around a passage
const AFTER = 3000;
const STEP = 5000;

/** Lines of a PDF's prose run on, as its paragraphs did before they were set; rows of tables stay. */
const flowing = (text) => text.replace(/([^\n\t]{50,})\n(?=[^\n\t])/g, "$1 ");

export class Reader {
  constructor() {
    this.sources = [];
    this.at = 0;
    this.shown = 0; // counts what was opened, so that late answers are left out
    this.opener = null;
    $("reader-close").addEventListener("click", () => this.close());
    $("reader-before").addEventListener("click", () => this.show(this.at - 1));
    $("reader-next").addEventListener("click", () => this.show(this.at + 1));
  }

  get isOpen() { return !$("reader").hidden; }

  /** Open one of the sources of an answer; `opener` has the focus again in the end. */
  open(sources, at, buttons) {
    this.forget();
    this.sources = sources;
    this.buttons = buttons;
    this.opener = buttons[at];
    $("reader").hidden = false;
    document.querySelector(".desk").classList.add("reading");
    this.show(at);
  }

  close() {
    this.forget();
    $("reader").hidden = true;
    document.querySelector(".desk").classList.remove("reading");
    this.opener?.focus();
  }

  forget() {
    this.shown += 1;
    for (const button of this.buttons ?? []) button.setAttribute("aria-expanded", "false");
    this.watcher?.disconnect();
  }

  async show(at) {
    this.forget();
    this.at = at;
    const mine = this.shown;
    const source = this.sources[at];
    this.buttons[at].setAttribute("aria-expanded", "true");
    this.opener = this.buttons[at];
    $("reader-name").textContent = source.filename;
    $("reader-place").textContent = [`Source ${at + 1} of ${this.sources.length}`, place(source)].filter(Boolean).join(" · ");
    $("reader-before").disabled = at === 0;
    $("reader-next").disabled = at === this.sources.length - 1;
    const body = $("reader-body");
    body.replaceChildren(make("p", { class: "reader-end" }, "Opening"));
    try {
      const found = await this.load(Math.max(source.start - BEFORE, 0), source.end + AFTER);
      if (mine !== this.shown) return;
      this.from = found.start;
      this.to = found.end;
      this.total = found.characters;
      this.page = null;
      body.replaceChildren(this.more("Earlier", -1), ...this.blocks(found, source), this.more("Later", 1));
      this.update();
      body.focus({ preventScroll: true });
      this.stand();
      this.watch();
      announce(`${source.filename}, ${place(source)}, is open at the passage.`);
    } catch (error) {
      if (mine === this.shown) body.replaceChildren(make("p", { class: "reader-end" }, error.message));
    }
  }

  /** Scroll to the passage. */
  stand() {
    const body = $("reader-body");
    const mark = body.querySelector("mark");
    if (!mark) return;
    const top = mark.getBoundingClientRect().top - body.getBoundingClientRect().top + body.scrollTop;
    body.scrollTop = Math.max(top - body.clientHeight * 0.28, 0);
  }

  load(start, end) {
    const id = encodeURIComponent(this.sources[this.at].file_id);
    return api.get(`/api/documents/${id}/text?start=${start}&end=${end}`);
  }

  /** Paragraphs of a piece of the document, with a line where a page or a chapter begins. */
  blocks(found, source = null) {
    const characters = [...found.text]; // as the service counts them
    const ends = [...found.marks.slice(1).map((mark) => mark.at), found.end];
    const made = [];
    found.marks.forEach((mark, index) => {
      const label = [mark.page ? `Page ${number(mark.page)}` : "", mark.chapter].filter(Boolean).join(" · ");
      if (label && label !== this.page) made.push(make("div", { class: "page-mark" }, label));
      this.page = label || this.page;
      const set = /\.pdf$/i.test(this.sources[this.at].filename) ? flowing : (text) => text;
      const text = (from, to) => set(characters.slice(Math.max(from, mark.at) - found.start, Math.min(to, ends[index]) - found.start).join(""));
      if (!source || source.end <= mark.at || source.start >= ends[index]) {
        made.push(make("p", {}, text(mark.at, ends[index])));
        return;
      }
      made.push(make("p", {}, text(mark.at, source.start), make("mark", {}, text(source.start, source.end)), text(source.end, ends[index])));
    });
    return made;
  }

  more(name, way) {
    return make("button", { class: "plain more", type: "button", "data-way": way, on: { click: () => this.extend(way) } }, name);
  }

  async extend(way) {
    if (this.extending) return;
    this.extending = true;
    const mine = this.shown;
    const body = $("reader-body");
    try {
      const found = way < 0 ? await this.load(Math.max(this.from - STEP, 0), this.from) : await this.load(this.to, this.to + STEP);
      if (mine !== this.shown) return;
      if (way < 0) {
        const height = body.scrollHeight - body.scrollTop;
        const page = this.page;
        this.page = null;
        const blocks = this.blocks(found);
        const first = body.children[1]; // tells the page that was broken off here
        if (first.className === "page-mark" && first.textContent === this.page) first.remove();
        body.firstChild.after(...blocks);
        this.page = page;
        this.from = found.start;
        body.scrollTop = body.scrollHeight - height;
      } else {
        body.lastChild.before(...this.blocks(found));
        this.to = found.end;
      }
      this.update();
    } catch (error) {
      complain(error.message);
    } finally {
      this.extending = false;
    }
  }

  update() {
    $("reader-body").firstChild.hidden = this.from <= 0;
    $("reader-body").lastChild.hidden = this.to >= this.total;
  }

  /** Page on where the end of what is shown comes near. */
  watch() {
    const body = $("reader-body");
    this.watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.extend(Number(entry.target.dataset.way));
    }, { root: body, rootMargin: "200px 0px" });
    this.watcher.observe(body.lastChild);
  }
}
