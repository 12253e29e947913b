// Requests to the service that sent this page.

const KEY = "hiermem.key";

let onRefused = () => {};

export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Call this where the service wants another key. */
export function whenRefused(act) { onRefused = act; }

function headers(more = {}) {
  return key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more;
}

async function failure(response) {
  if (response.status === 401) onRefused();
  let message = `The service answered with status ${response.status}.`;
  try { message = (await response.json()).error.message ?? message; } catch { /* no JSON */ }
  return new Failure(message, response.status);
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service cannot be reached.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

export const get = async (path) => (await send(path)).json();
export const remove = async (path) => (await send(path, { method: "DELETE" })).json();

/** Upload a file; `onProgress` is told the share that was sent. */
export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    });
    request.addEventListener("error", () => reject(new Failure("The upload did not reach the service.")));
    request.addEventListener("load", () => {
      if (request.status === 401) onRefused();
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* no JSON */ }
      if (request.status === 200) resolve(body);
      else reject(new Failure(body.error?.message ?? `The upload was refused (${request.status}).`, request.status));
    });
    const form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file, file.name);
    request.send(form);
  });
}

/** Ask, and give the events of the stream. */
export async function* respond(body, signal) {
  const response = await send("/v1/responses", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const data = text.slice(0, end).split("\n").filter((line) => line.startsWith("data: "));
      text = text.slice(end + 2);
      if (data.length) yield JSON.parse(data.map((line) => line.slice(6)).join("\n"));
    }
  }
}
