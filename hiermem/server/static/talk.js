// The conversation: questions, answers as they are written, and their sources.

import * as api from "./api.js";
import { $, announce, complain, make, number, place } from "./dom.js";

const LAST = "hiermem.response";

export class Talk {
  constructor({ library, reader }) {
    this.library = library;
    this.reader = reader;
    this.previous = null;
    this.answering = null; // aborts the answer that is being written
    this.ready = false;
    this.wire();
  }

  wire() {
    const question = $("question");
    question.addEventListener("input", () => { this.fit(); this.update(); });
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!$("send").disabled && !this.answering) $("ask").requestSubmit();
    });
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.answering) this.answering.abort();
      else this.ask(question.value.trim());
    });
    $("fresh").addEventListener("click", () => this.begin());
    $("within").addEventListener("change", () => this.updateScope());
  }

  /** Grow with what is typed. */
  fit() {
    const question = $("question");
    question.style.height = "auto";
    question.style.height = `${question.scrollHeight}px`;
  }

  begin() {
    this.previous = null;
    localStorage.removeItem(LAST);
    $("turns").replaceChildren();
    if (this.reader.isOpen) this.reader.close();
    this.update();
    $("question").focus();
  }

  /** Show the conversation again that this browser had. */
  async restore() {
    const last = localStorage.getItem(LAST);
    if (!last || this.previous) return;
    let turns;
    try {
      ({ turns } = await api.get(`/api/conversations/${encodeURIComponent(last)}`));
    } catch (error) {
      if (!(error instanceof api.Failure)) throw error;
      return; // it begins anew
    }
    for (const { question, answer } of turns) {
      const turn = this.turn(question, "");
      turn.answer.textContent = answer.text;
      this.finish(turn, answer.text, answer.annotations, answer.hiermem);
      this.previous = answer.id;
    }
    this.update();
    if (turns.length) this.scrollTo($("turns").lastElementChild);
  }

  update() {
    const empty = !this.library.read.length;
    $("welcome").hidden = $("turns").childElementCount > 0;
    $("fresh").hidden = $("turns").childElementCount === 0;
    $("question").placeholder = empty ? "Add a document, then ask" : "Ask a question";
    $("send").textContent = this.answering ? "Stop" : "Ask";
    $("send").disabled = !this.answering && (!this.ready || empty || !$("question").value.trim());
    this.updateScope();
  }

  updateScope() {
    const within = $("within");
    const chosen = within.value;
    const names = this.library.read.map((each) => each.name);
    const known = [...within.options].slice(1).map((option) => option.value);
    if (names.join("\n") !== known.join("\n")) {
      within.replaceChildren(make("option", { value: "" }, "all documents"), ...names.map((name) => make("option", { value: name }, name)));
      within.value = names.includes(chosen) ? chosen : "";
    }
    const paged = this.library.read.filter((each) => each.pages && (!within.value || each.name === within.value));
    $("page-field").hidden = !paged.length;
    $("page").max = Math.max(...paged.map((each) => each.pages), 1);
  }

  scope() {
    const page = $("page-field").hidden ? NaN : parseInt($("page").value, 10);
    const name = $("within").value;
    const words = [name ? `In ${name}` : "", page >= 1 ? `up to page ${number(page)}` : ""].filter(Boolean).join(", ");
    const hiermem = { ...(name ? { documents: [name] } : {}), ...(page >= 1 ? { before: page + 1 } : {}) };
    return { words: words.charAt(0).toUpperCase() + words.slice(1), hiermem };
  }

  async ask(question) {
    if (!question || !this.ready) return;
    const { words, hiermem } = this.scope();
    $("question").value = "";
    this.fit();
    await this.put(this.turn(question, words), { model: "hiermem", input: question, hiermem, previous_response_id: this.previous });
  }

  /** Send a question and show its answer as it comes. */
  async put(turn, body) {
    this.answering = new AbortController();
    turn.article.classList.add("busy");
    turn.article.setAttribute("aria-busy", "true");
    this.update();
    this.scrollTo(turn.article);
    try {
      const response = await this.stream(turn, body, this.answering.signal);
      const part = response.output[0].content[0];
      turn.answer.textContent = part.text;
      this.previous = response.id;
      localStorage.setItem(LAST, response.id);
      this.finish(turn, part.text, part.annotations, response.hiermem);
      announce(response.hiermem.found ? `Answer: ${part.text} ${part.annotations.length} sources.` : "Not in the documents.");
    } catch (error) {
      this.fail(turn, body, error);
    } finally {
      this.answering = null;
      turn.article.classList.remove("busy");
      turn.article.removeAttribute("aria-busy");
      this.update();
    }
  }

  async stream(turn, body, signal) {
    for await (const event of api.respond(body, signal)) {
      if (event.type === "response.output_text.delta") {
        turn.answer.append(event.delta);
        this.follow(turn.article);
      } else if (event.type === "response.completed" || event.type === "response.incomplete") {
        return event.response;
      } else if (event.type === "response.failed") {
        throw new api.Failure(event.response.error.message);
      }
    }
    throw new api.Failure("The answer broke off.");
  }

  turn(question, words) {
    const answer = make("p", { class: "turn-answer" });
    const article = make("article", { class: "turn" },
      make("h2", { class: "turn-question" }, question),
      words ? make("p", { class: "turn-scope" }, words) : null, answer);
    $("turns").append(article);
    $("welcome").hidden = true;
    return { article, answer };
  }

  finish({ article, answer }, text, sources, { found, complete, confidence }) {
    if (!found) {
      answer.remove();
      article.append(make("div", { class: "turn-state" },
        make("h3", {}, "Not in the documents"),
        make("p", {}, "No passage answers this. Try words that the documents use, or add a document.")));
    }
    if (!text.trim() && found) answer.textContent = "No words came of it; the passages may tell.";
    const notes = [];
    if (!complete) notes.push(make("strong", {}, "Cut short"), "The answer reached its limit.");
    if (found && confidence !== null) notes.push(make("span", { title: "How likely the documents hold an answer" }, `Confidence ${Math.round(confidence * 100)} %`));
    if (notes.length) article.append(make("p", { class: "turn-note" }, ...notes));
    if (sources.length) article.append(...this.sources(sources));
  }

  sources(sources) {
    const buttons = sources.map((source, at) => make("button", {
      class: "source", type: "button", "aria-expanded": "false", "aria-controls": "reader",
      on: { click: () => this.reader.open(sources, at, buttons) },
    },
    make("span", { class: "source-number" }, String(at + 1)),
    make("span", { class: "source-name" }, source.filename),
    place(source) ? make("span", { class: "source-place" }, place(source)) : null,
    make("span", { class: "source-quote" }, source.quote.trim().replace(/\s+/g, " "))));
    return [
      make("h3", { class: "sources-title" }, sources.length === 1 ? "Source" : "Sources"),
      make("ol", { class: "sources" }, ...buttons.map((button) => make("li", {}, button))),
    ];
  }

  fail({ article, answer }, body, error) {
    if (error.name === "AbortError") {
      article.append(make("p", { class: "turn-note" }, make("strong", {}, "Stopped"), "This answer does not count as a turn."));
      return;
    }
    answer.remove();
    const again = make("button", { class: "plain", type: "button" }, "Ask again");
    const state = make("div", { class: "turn-state bad", role: "alert" },
      make("h3", {}, "No answer"), make("p", {}, error.message), again);
    again.addEventListener("click", () => {
      if (this.answering) { complain("Another answer is being written."); return; }
      state.remove();
      answer.replaceChildren();
      article.append(answer);
      this.put({ article, answer }, body);
    });
    article.append(state);
  }

  /** Let a turn stand at the top. */
  scrollTo(article) {
    const scroll = $("scroll");
    scroll.scrollTop += article.getBoundingClientRect().top - scroll.getBoundingClientRect().top;
  }

  /** Keep the end of an answer in sight. */
  follow(article) {
    const scroll = $("scroll");
    const over = article.getBoundingClientRect().bottom - scroll.getBoundingClientRect().bottom;
    if (over > 0) scroll.scrollTop += over + 24;
  }
}
