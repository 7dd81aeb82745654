// The page of the web app: a form, and the jobs as the server tells of them. It never asks how a job is doing.
// What comes from outside is only ever set as text, or as the address of this app's own files.

const RETRY = 3000; // milliseconds
const WORDS = {
  ordering: "Waiting to be ordered", pending: "In the making", done: "Done", failed: "Failed",
  ambiguous: "In doubt", refused: "Not ordered", abandoned: "Nothing came of it", lost: "Not followed",
};
const SIGNS = { failed: "✕", refused: "✕", ambiguous: "?", abandoned: "–", lost: "–" };
const HELP = {
  failed: "Its credits are refunded.",
  refused: "Nothing was paid.",
};

const at = (id) => document.getElementById(id);
const form = at("order");
const shown = new Map(); // the cards by their ids: the job as it was told last, and its element

// --- the server's events ----------------------------------------------------------------------------

let source = null;
let last = ""; // the id of the last message: after a pause, only what has changed since is sent
let keep = 200;

function connect() {
  source = new EventSource(last ? `/events?since=${encodeURIComponent(last)}` : "/events");
  source.onopen = () => tellConnection("live", "Live");
  source.onerror = () => {
    tellConnection("lost", "The connection is lost: trying again");
    if (source.readyState === EventSource.CLOSED) {
      // An answer that is no stream, a proxy's error say: a browser gives up then.
      setTimeout(() => { if (!document.hidden && source.readyState === EventSource.CLOSED) connect(); }, RETRY);
    }
  };
  source.addEventListener("jobs", (message) => {
    const told = JSON.parse(message.data);
    last = message.lastEventId;
    keep = told.keep;
    const there = new Set(told.jobs.map((job) => job.id));
    for (const id of shown.keys()) if (!there.has(id)) forget(id);
    for (const job of told.jobs) show(job, false);
    count();
  });
  source.addEventListener("job", (message) => {
    last = message.lastEventId;
    show(JSON.parse(message.data), true);
    count();
  });
}

function tellConnection(state, text) {
  if (at("connection").dataset.state === state) return;
  at("connection").dataset.state = state;
  at("connection").textContent = text;
}

// A browser has six connections to a server. A page that nobody looks at gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) source.close();
  else if (source.readyState === EventSource.CLOSED) connect();
});

// --- the cards --------------------------------------------------------------------------------------

function show(job, isNews) {
  const before = shown.get(job.id);
  const element = before?.element ?? made(job);
  shown.set(job.id, { job, element });
  element.className = `card ${job.state}`;
  element.querySelector(".state").textContent = stateOf(job);
  element.querySelector(".why").textContent = [job.why, HELP[job.state] ?? ""].join(" ").trim();
  element.querySelector(".again").hidden = !["failed", "refused", "abandoned", "lost"].includes(job.state);
  const had = element.contains(document.activeElement);
  showStage(element, job, before?.job);
  showDoubt(element, job, before?.job);
  place(element, job);
  // Whoever has just pressed a button that is gone now goes on from the card.
  if (had && !element.contains(visible(document.activeElement))) element.querySelector("h3").focus();
  if (isNews && before && before.job.state !== job.state) {
    at("news").textContent = `${titleOf(job)}: ${WORDS[job.state]}. ${job.why}`;
    if (job.state === "done") play(element);
  }
}

const visible = (element) => (element?.checkVisibility() ? element : null);

function made(job) {
  const element = at("card").content.firstElementChild.cloneNode(true);
  const time = element.querySelector("time");
  element.querySelector("h3").textContent = titleOf(job);
  element.querySelector(".suggestion").textContent = job.suggestion;
  time.dateTime = job.at;
  time.textContent = momentOf(new Date(job.at));
  element.querySelector(".look").addEventListener("click", (event) => settle(element, event.target, "/look", {}));
  element.querySelector(".abandon").addEventListener("click", (event) =>
    settle(element, event.target, `/jobs/${encodeURIComponent(job.id)}/abandon`, {}));
  element.querySelector(".again").addEventListener("click", () => fillIn(job));
  return element;
}

function place(element, job) {
  // What asks for a decision comes first, then the newest.
  const rank = `${job.state === "ambiguous" ? 1 : 0} ${job.at}`;
  if (element.dataset.rank === rank) return;
  element.dataset.rank = rank;
  const next = [...at("jobs").children].find((other) => other !== element && other.dataset.rank < rank);
  at("jobs").insertBefore(element, next ?? null);
}

function forget(id) {
  shown.get(id).element.remove();
  shown.delete(id);
}

function count() {
  const settled = [...shown.values()].map((card) => card.job)
    .filter((job) => ["done", "failed", "refused", "abandoned", "lost"].includes(job.state))
    .sort((one, other) => one.version - other.version);
  for (const job of settled.slice(0, Math.max(0, settled.length - keep))) forget(job.id);
  at("count").textContent = shown.size || "";
  at("empty").hidden = shown.size > 0;
}

function stateOf(job) {
  const word = job.status && job.state === "pending" ? job.status.toLowerCase().replaceAll("_", " ") : "";
  return word ? `${WORDS[job.state]}: ${word}` : WORDS[job.state];
}

function titleOf(job) {
  return job.kind === "video" ? job.images[0] : `Reel of ${job.images.join(", ")}`;
}

function momentOf(date) {
  const today = date.toDateString() === new Date().toDateString();
  const day = today ? {} : { day: "numeric", month: "short" };
  return date.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit" });
}

function showStage(element, job, before) {
  const look = (one) => one && JSON.stringify([one.state, one.clips]);
  if (look(job) === look(before)) return; // a clip that plays goes on
  const stage = element.querySelector(".stage");
  stage.classList.toggle("several", job.clips.length > 1);
  if (job.clips.length > 0) {
    stage.replaceChildren(...job.clips.map((clip) => videoOf(job, clip)));
    return;
  }
  const sign = document.createElement("span");
  sign.className = ["ordering", "pending"].includes(job.state) ? "sign busy" : "sign";
  sign.textContent = SIGNS[job.state] ?? "";
  sign.ariaHidden = "true";
  stage.replaceChildren(sign);
}

function videoOf(job, clip) {
  const video = document.createElement("video");
  const address = `/clips/${encodeURIComponent(job.id)}/${clip.place}`;
  // Nothing of a clip is fetched before it is played, but its first picture where there is no still.
  Object.assign(video, clip.still ? { preload: "none", poster: `${address}.jpg` } : { preload: "metadata" });
  Object.assign(video, { controls: true, playsInline: true, loop: true, src: `${address}.mp4` });
  video.ariaLabel = `The clip of ${titleOf(job)}`;
  return video;
}

function play(element) {
  const video = element.querySelector("video");
  if (!video || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  video.muted = true;
  video.play().catch(() => {}); // a browser may not want to: then it waits for a click
}

// --- doubts -----------------------------------------------------------------------------------------

function showDoubt(element, job, before) {
  const doubt = element.querySelector(".doubt");
  doubt.hidden = job.state !== "ambiguous";
  if (JSON.stringify(job.candidates) === JSON.stringify(before?.candidates)) return;
  doubt.querySelector(".ask").textContent = job.candidates.length > 0
    ? "The order may have been taken, or not; it is not sent again. Did one of these come of it?"
    : "The order may have been taken, or not; it is not sent again. No record is seen that may have come of it.";
  doubt.querySelector(".candidates").replaceChildren(...job.candidates.map((one) => candidateOf(element, job, one)));
}

function candidateOf(card, job, candidate) {
  const element = at("candidate").content.firstElementChild.cloneNode(true);
  element.querySelector("b").textContent = candidate.id;
  const named = candidate.name ? `${candidate.name}, ` : "";
  element.querySelector(".told").textContent = named + candidate.status.toLowerCase().replaceAll("_", " ");
  const link = element.querySelector("a");
  if (candidate.url && /^https?:\/\//i.test(candidate.url)) Object.assign(link, { href: candidate.url, hidden: false });
  const button = element.querySelector("button");
  button.setAttribute("aria-label", `This is it: ${candidate.id}`);
  button.addEventListener("click", () =>
    settle(card, button, `/jobs/${encodeURIComponent(job.id)}/adopt`, { record: candidate.id }));
  return element;
}

async function settle(card, button, address, body) {
  // Not disabled meanwhile, since it would lose the focus: to press it twice does what pressing it once does.
  button.ariaBusy = "true";
  card.querySelector(".doubt .error").textContent = await post(address, body);
  button.ariaBusy = "false";
}

// --- the form ---------------------------------------------------------------------------------------

// A form's id makes it one order, however often it is sent: a double click, a second try after a lost answer.
// What is asked for anew has a new one.
let formId = newId();

function newId() {
  const numbers = crypto.getRandomValues(new Uint8Array(16));
  return `form-${[...numbers].map((number) => number.toString(16).padStart(2, "0")).join("")}`;
}

const isReel = () => form.elements.kind.value === "reel";

function showKind() {
  const reel = isReel();
  at("suggestion-field").hidden = reel;
  document.querySelector("label[for=images]").textContent = reel ? "Image ids" : "Image id";
  at("images").rows = reel ? 4 : 1;
  at("images").placeholder = reel ? "img_001\nimg_002\nimg_003" : "img_abc123";
  at("images-hint").textContent = reel
    ? "1 to 10 images in the order of the reel, each on a line of its own."
    : "The image that the video is made from.";
}

function fillIn(job) {
  form.elements.kind.value = job.kind;
  at("images").value = job.images.join("\n");
  at("suggestion").value = job.suggestion;
  formId = newId();
  showKind();
  at("images").focus();
}

function fault(text) {
  at("error").textContent = text;
  at("images").setAttribute("aria-invalid", text ? "true" : "false");
}

form.addEventListener("input", () => {
  formId = newId();
  fault("");
  showKind();
});

at("images").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !isReel() && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const images = at("images").value.split(/[\s,]+/).filter(Boolean);
  if (images.length === 0 || (images.length > 1 && !isReel()) || images.length > 10) {
    fault(images.length === 0 ? "An image id is needed." : isReel() ? "A reel has at most 10 images." : "A video has one image: choose Reel for several.");
    at("images").focus();
    return;
  }
  const sent = formId;
  const button = form.querySelector("button.main");
  button.ariaBusy = "true";
  fault("");
  const suggestion = isReel() ? "" : at("suggestion").value;
  const error = await post("/jobs", { id: sent, kind: form.elements.kind.value, images, suggestion });
  button.ariaBusy = "false";
  if (formId !== sent) return; // something else was typed meanwhile
  if (error) {
    at("error").textContent = error;
    return;
  }
  const kind = form.elements.kind.value;
  form.reset();
  form.elements.kind.value = kind;
  formId = newId();
  showKind();
  at("images").focus();
});

async function post(address, body) {
  try {
    const answer = await fetch(address, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    if (answer.ok) return "";
    const told = await answer.json().catch(() => ({}));
    return told.error ?? `The server answered ${answer.status}.`;
  } catch {
    return "The server can't be reached. Try again: it will not be ordered twice.";
  }
}

showKind();
connect();
