"use strict";

const KINDS = { score: "Scores", midi: "MIDI", audio: "Recordings", text: "Texts", image: "Images" };
const ONE = { score: "score", midi: "MIDI", audio: "recording", text: "text", image: "image" };
const STEP = 20; // results at a time
const MOST = 500;
const TEXT_BYTES = 2000; // shown of a text

const find = (selector, within = document) => within.querySelector(selector);
const box = find("#q");
const results = find("#results");
const uploads = new Map(); // files that were used as queries since the page was opened, by name
let collection;
let latest; // aborts the current search
let shown = STEP;

/** The search in the page's address: {text, like, upload, modality}. */
function asked() {
  const words = new URLSearchParams(location.search);
  return {
    text: words.get("q")?.trim(),
    like: words.get("like"),
    upload: words.get("file"),
    modality: words.get("modality") || "",
  };
}

/** Runs a search and puts it into the page's address. */
function go(words, modality = asked().modality) {
  const query = new URLSearchParams(words);
  if (modality) query.set("modality", modality);
  const address = query.size ? `?${query}` : location.pathname;
  if (address !== location.search) history.pushState(null, "", address);
  shown = STEP;
  search();
}

async function ask(url, options) {
  const response = await fetch(url, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
  });
  const answer = await response.json().catch(() => ({ error: `The server failed (${response.status}).` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function request({ text, like, upload, modality }, signal) {
  const options = new URLSearchParams({ top_k: shown, modality });
  if (text) return ask(`/api/search?${new URLSearchParams({ q: text })}&${options}`, { signal });
  if (like) return ask(`/api/similar?${new URLSearchParams({ source: like })}&${options}`, { signal });
  const file = uploads.get(upload);
  if (!file) throw new Error(`${upload}: please choose this file again; a page cannot reopen files.`);
  if (file.size > collection.max_upload) {
    throw new Error(`${file.name}: expected at most ${Math.floor(collection.max_upload / 2 ** 20)} MB.`);
  }
  const body = new FormData();
  body.set("file", file, file.name);
  return ask(`/api/search?${options}`, { method: "POST", body, signal });
}

async function search() {
  latest?.abort();
  const mine = (latest = new AbortController());
  const query = asked();
  box.value = query.text ?? "";
  const filter = find(`#filters input[value="${CSS.escape(query.modality)}"]`);
  if (filter) filter.checked = true;
  find("#more").hidden = true;
  const idle = !query.text && !query.like && !query.upload;
  find("#welcome").hidden = !idle;
  document.title = query.text ? `${query.text} · CLaMP 3` : "CLaMP 3 search";
  if (idle) {
    results.replaceChildren();
    say("");
    return;
  }
  say("Searching…");
  results.setAttribute("aria-busy", "true");
  try {
    show(await request(query, mine.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    results.replaceChildren();
    say(error.message, true);
  }
  if (latest === mine) results.removeAttribute("aria-busy");
}

function say(text, fault = false) {
  find("#status").textContent = text;
  find("#status").classList.toggle("fault", fault);
}

function show({ query, total, results: items }) {
  const wanted = query.text ?? query.file ?? nameOf(query.item);
  const seen = query.caption === undefined ? "" : ` (a picture of “${query.caption}”)`;
  let count = total === 1 ? "1 result" : `${total || "No"} results`;
  if (items.length < total) count = `${items.length} of ${count}`;
  say(`${count} for “${wanted}”${seen}${total > 1 ? ", closest first" : ""}`);
  const old = new Map([...results.children].map((element) => [element.dataset.key, element]));
  results.replaceChildren(
    ...items.map((item) => {
      const key = `${item.address} ${item.similarity}`;
      const element = old.get(key) ?? drawn(item);
      element.dataset.key = key;
      return element;
    }),
  );
  find("#more").hidden = items.length >= Math.min(total, MOST);
}

function nameOf(item) {
  return item.title ?? (item.tune ? `${item.name}, tune ${item.tune}` : item.name);
}

function drawn(item) {
  const element = find("#result").content.cloneNode(true).firstElementChild;
  find("h2", element).textContent = nameOf(item);
  const kind = document.createElement("b");
  kind.textContent = ONE[item.modality];
  const file = item.title ? item.name + (item.tune ? `, tune ${item.tune}` : "") : "";
  const path = [item.folder, file].filter(Boolean).join("/");
  find(".where", element).append(kind, path ? `  ·  ${path}` : "");
  find(".number", element).textContent = item.similarity.toFixed(3);
  find(".bar span", element).style.width = `${Math.max(item.similarity, 0) * 100}%`;
  find(".similar", element).href = `?${new URLSearchParams({ like: item.address })}`;
  find(".similar", element).setAttribute("aria-label", `More like ${nameOf(item)}`);
  find(".open", element).href = item.file;
  find(".open", element).setAttribute("aria-label", `Open the file of ${nameOf(item)}`);
  const preview = find(".preview", element);
  if (item.notation) preview.append(notation(item));
  if (item.roll) preview.append(picture(item.roll, "roll", `Piano roll of ${nameOf(item)}`));
  if (item.modality === "text") preview.append(text(item));
  if (item.modality === "image") preview.append(picture(item.file, "photo", nameOf(item)));
  if (item.modality === "audio") {
    preview.append(player(item, "metadata"));
  } else if (item.sound) {
    const play = find(".play", element);
    play.hidden = false;
    play.setAttribute("aria-label", `Play ${nameOf(item)}`);
    play.addEventListener("click", () => {
      const audio = player(item, "auto");
      preview.append(audio);
      play.remove();
      audio.focus();
      audio.play().catch(() => {}); // the player's error event is handled below
    });
  }
  return element;
}

function notation(item) {
  const both = document.createElement("picture");
  const narrow = document.createElement("source");
  narrow.media = "(max-width: 32rem)";
  narrow.srcset = `${item.notation}&narrow`;
  both.append(narrow, picture(item.notation, "", `Notation of the beginning of ${nameOf(item)}`));
  return both;
}

function picture(url, look, description) {
  const image = new Image();
  image.className = look;
  image.classList.add("waiting");
  image.loading = "lazy";
  image.alt = "";
  image.addEventListener("load", () => {
    image.classList.remove("waiting");
    image.alt = description;
  });
  image.addEventListener("error", () => explain(image, url));
  image.src = url;
  return image;
}

function player(item, preload) {
  const audio = new Audio();
  audio.controls = true;
  audio.preload = preload;
  audio.setAttribute("aria-label", nameOf(item));
  audio.addEventListener("error", () => explain(audio, item.sound));
  audio.src = item.sound;
  return audio;
}

function text(item) {
  const quote = document.createElement("blockquote");
  quote.dir = "auto";
  fetch(item.file, { headers: { Range: `bytes=0-${TEXT_BYTES - 1}` } })
    .then(async (response) => {
      if (!response.ok) throw new Error((await response.json()).error);
      const bytes = await response.arrayBuffer();
      const all = Number(response.headers.get("Content-Range")?.split("/")[1] ?? bytes.byteLength);
      // as a stream, because the bytes may end within a character
      const words = new TextDecoder().decode(bytes, { stream: true });
      quote.textContent = all > bytes.byteLength ? `${words.trim()} …` : words.trim();
    })
    .catch((error) => fault(quote, error.message));
  return quote;
}

/** Replaces a picture or a player by the reason why it failed. */
async function explain(element, url) {
  const reason = await ask(url).then(() => "This browser cannot show this preview.", (error) => error.message);
  fault(element, reason);
}

function fault(element, reason) {
  const line = document.createElement("p");
  line.className = "fault";
  line.textContent = reason;
  element.replaceWith(line);
}

function upload(file) {
  uploads.set(file.name, file);
  go({ file: file.name });
}

async function start() {
  try {
    collection = await ask("/api/collection");
  } catch (error) {
    say(error.message, true);
    return;
  }
  find("#about").textContent = `${collection.name}, ${collection.total} ${collection.total === 1 ? "source" : "sources"}`;
  find("#file").accept = collection.suffixes.join(",");
  find("#pictures").hidden = !collection.suffixes.includes(".png");
  const kinds = Object.keys(KINDS).filter((kind) => collection.modalities[kind]);
  const filters = find("#filters");
  filters.hidden = kinds.length < 2;
  for (const kind of ["", ...kinds]) {
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "modality", value: kind, id: `kind-${kind}` });
    const label = document.createElement("label");
    label.htmlFor = radio.id;
    label.textContent = KINDS[kind] ?? "All";
    const count = document.createElement("span");
    count.textContent = collection.modalities[kind] ?? collection.total;
    label.append(count);
    const choice = document.createElement("div");
    choice.append(radio, label);
    filters.append(choice);
  }
  search();
}

find("#search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = box.value.trim();
  go(text ? { q: text } : {});
});

find("#filters").addEventListener("change", (event) => {
  const words = new URLSearchParams(location.search);
  words.delete("modality");
  go(words, event.target.value);
});

find("#file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) upload(file);
  event.target.value = ""; // so that the same file can be chosen again
});

find("#more").addEventListener("click", async () => {
  const before = results.children.length;
  shown = Math.min(shown + STEP, MOST);
  await search();
  if (results.children[before]) find(".similar", results.children[before]).focus(); // the button that had it may be hidden now
});

// Links to searches stay in this page, unless the user asks for a new tab.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.similar, #welcome a");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(new URL(link.href).searchParams);
  scrollTo(0, 0);
  find("#status").focus({ preventScroll: true });
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input:not([type=radio]), textarea")) return;
  event.preventDefault();
  box.focus();
  box.select();
});

// Only one player plays at a time.
document.addEventListener(
  "play",
  (event) => {
    for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
  },
  true,
);

const dropped = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!dropped(event)) return;
  event.preventDefault();
  find("#drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("#drop").hidden = true;
});
addEventListener("drop", (event) => {
  if (!dropped(event)) return;
  event.preventDefault();
  find("#drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) upload(file);
});

addEventListener("popstate", () => {
  shown = STEP;
  search();
});

start();
