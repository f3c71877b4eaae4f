// The page: what is looked for stands in its address, so that "back" and bookmarks work.

const PAGE = 12;
const BAD_FILES = 100;

const $ = (selector, root = document) => root.querySelector(selector);
const text = $("#text");
const results = $("#results");
const player = $("#player");
const video = $("video", player);

let items = [];
let clipName = "";
let request = new AbortController();
let shown = null;

// ---------------------------------------------------------------- the server

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is garevla serve still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error || `The server answers ${answer.status}.`);
  return content;
}

function askForPage({ words, clip, page }, signal) {
  const skip = (page - 1) * PAGE;
  if (clip) return ask(`/api/clips/${encodeURIComponent(clip)}?top=${PAGE}&skip=${skip}`, { signal });
  const body = JSON.stringify({ text: words, top: PAGE, skip });
  return ask("/api/search", { method: "POST", headers: { "content-type": "application/json" }, body, signal });
}

// ---------------------------------------------------------------- what is looked for

function wanted() {
  const address = new URLSearchParams(location.search);
  const page = Math.max(1, Number.parseInt(address.get("page"), 10) || 1);
  return { words: address.get("q") || "", clip: address.get("clip") || "", page };
}

function go({ words = "", clip = "", page = 1 }) {
  const address = new URLSearchParams();
  if (clip) address.set("clip", clip);
  else if (words) address.set("q", words);
  if (page > 1) address.set("page", page);
  const query = String(address);
  history.pushState(null, "", query ? `?${query}` : location.pathname);
}

async function show({ moveFocus = false } = {}) {
  shown = location.search;
  const query = wanted();
  text.value = query.words;
  if (!query.words && !query.clip) return welcome();
  await during(query.clip ? "Looking…" : "Searching…", async (signal) => {
    fill(query, await askForPage(query, signal));
    if (moveFocus) {
      results.focus({ preventScroll: true });
      scrollTo({ top: 0 });
    }
  });
}

// One thing at a time: a new one takes the place of the last.
async function during(message, work) {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  results.setAttribute("aria-busy", "true");
  $("#said").textContent = message;
  $("#problem").hidden = true;
  try {
    await work(signal);
  } catch (error) {
    if (signal.aborted) return;
    clear();
    $("#said").textContent = "";
    $("#problem").textContent = error.message;
    $("#problem").hidden = false;
  }
  if (!signal.aborted) results.removeAttribute("aria-busy");
}

// ---------------------------------------------------------------- results

function clear() {
  items = [];
  $("#items").replaceChildren();
  $("#pages").hidden = true;
  $("#doubt").hidden = true;
}

function fill({ words, clip, page }, found) {
  clear();
  items = found.results;
  $("#items").append(...items.map(card));
  $("#doubt").hidden = !(found.nothing_like_it && items.length);
  const pages = Math.ceil(found.total / PAGE);
  $("#pages").hidden = pages < 2;
  $("#page").textContent = `Page ${page} of ${pages}`;
  $("#previous").disabled = page <= 1;
  $("#next").disabled = page >= pages;
  const what = clip ? `like ${clipName || "the clip"}` : `for “${words}”`;
  const more = pages > 1 ? `, page ${page} of ${pages}` : "";
  $("#said").textContent = !found.total
    ? "The index has no videos to search."
    : items.length
      ? `${count(found.total, "result")} ${what}${more}`
      : "There is no such page.";
  document.title = `${clip ? clipName || "A clip" : words} – garevla`;
}

function card(item, place) {
  const copy = $("#item").content.cloneNode(true);
  const picture = $("img", copy);
  picture.addEventListener("error", () => picture.classList.add("absent"));
  picture.src = item.thumbnail;
  $(".times", copy).textContent = range(item);
  $(".path", copy).textContent = item.path;
  const isKnown = item.confidence !== null;
  const worth = isKnown ? item.confidence : Math.max(0, item.score);
  $(".value", copy).textContent = isKnown
    ? `${Math.round(100 * worth)} % confidence`
    : `${worth.toFixed(2)} similarity`;
  $(".bar > span", copy).style.width = `${Math.min(100, 100 * worth)}%`;
  $("button", copy).addEventListener("click", () => play(place));
  return copy;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function range({ start, end }) {
  // Parts of a second are not told, but a range is never nothing.
  return `${clock(start)} – ${clock(Math.max(Math.round(end), Math.floor(start) + 1))}`;
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// ---------------------------------------------------------------- the player

let playing = 0;
// Only the part that was found is played, unless somewhere else is sought or it is played on.
let stopAt = Infinity;
let isSeekingPart = false;

function play(place) {
  playing = place;
  const item = items[place];
  $("#playing").textContent = item.path;
  $("#again").textContent = `Play ${range(item)}`;
  $("#earlier").disabled = place === 0;
  $("#later").disabled = place === items.length - 1;
  $("#unplayable").hidden = true;
  $("#unplayable a").href = item.video;
  const isPicture = item.media_type.startsWith("image/");
  const picture = $("#screen img");
  video.hidden = isPicture;
  picture.hidden = !isPicture;
  $("#again").hidden = isPicture;
  if (!player.open) player.showModal();
  if (isPicture) {
    stop();
    picture.src = item.video;
  } else if (video.dataset.of === item.video) {
    playPart();
  } else {
    video.dataset.of = item.video;
    video.src = item.video;
  }
}

function playPart() {
  isSeekingPart = true;
  video.currentTime = items[playing].start;
  // It may not play by itself; then its controls do.
  video.play().catch(() => {});
}

function stop() {
  video.pause();
  delete video.dataset.of;
  video.removeAttribute("src");
  video.load();
}

video.addEventListener("loadedmetadata", playPart);
video.addEventListener("seeking", () => { stopAt = Infinity; });
video.addEventListener("seeked", () => {
  if (isSeekingPart) stopAt = items[playing].end;
  isSeekingPart = false;
});
video.addEventListener("timeupdate", () => {
  if (video.currentTime >= stopAt) {
    stopAt = Infinity;
    video.pause();
  }
});
video.addEventListener("error", () => { $("#unplayable").hidden = !video.getAttribute("src"); });
player.addEventListener("close", () => {
  stop();
  $("#screen img").removeAttribute("src");
  $("#items").children[playing]?.querySelector("button").focus();
});
$("#again").addEventListener("click", playPart);
$("#earlier").addEventListener("click", () => play(playing - 1));
$("#later").addEventListener("click", () => play(playing + 1));

for (const dialog of document.querySelectorAll("dialog")) {
  $(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    const box = dialog.getBoundingClientRect();
    const isOutside = event.clientY < box.top || event.clientY > box.bottom
      || event.clientX < box.left || event.clientX > box.right;
    // Keys that press a button are clicks at 0, 0.
    if (event.target === dialog && isOutside) dialog.close();
  });
}

// ---------------------------------------------------------------- the index

let status = null;

async function welcome() {
  request.abort();
  results.removeAttribute("aria-busy");
  clear();
  document.title = "garevla";
  await during("", async () => {
    status = await ask("/api/status");
    $("#said").textContent = status.videos
      ? `${count(status.videos, "video")}, ${long(status.seconds)} in all`
      : "The index has no videos yet. Put some into its folder, and run garevla index again.";
  });
}

function long(seconds) {
  if (seconds < 90) return count(Math.round(seconds), "second");
  if (seconds < 5400) return count(Math.round(seconds / 60), "minute");
  return `${(seconds / 3600).toLocaleString("en", { maximumFractionDigits: 1 })} hours`;
}

function size(bytes) {
  const power = Math.min(4, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  const digits = { maximumSignificantDigits: 3 };
  return `${(bytes / 1000 ** power).toLocaleString("en", digits)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

function cut({ segments, seconds, overlap }) {
  if (segments === "whole") return "whole videos";
  return segments === "shots" ? `shots, of at most ${seconds} s` : `${seconds} s, ${overlap} s shared with the next`;
}

async function showStatus() {
  $("#status").showModal();
  $("#facts").replaceChildren();
  $("#bad").hidden = true;
  $("#bad tbody").replaceChildren();
  try {
    status = await ask("/api/status");
  } catch (error) {
    return facts([["Problem", error.message]]);
  }
  facts([
    ["Videos", `${status.videos.toLocaleString("en")}, ${long(status.seconds)} in all`],
    ["Segments", `${status.segments.toLocaleString("en")} (${cut(status.cutting)})`],
    ["Files that cannot be indexed", status.bad_files.toLocaleString("en")],
    ["Model", `${status.model}, ${status.dim} dimensions`],
    ["Frames of a segment", `at most ${status.sampling.max_frames}`],
    ["Size on disk", size(status.bytes)],
    ["Folder of videos", status.video_dir],
    ["Index", `${status.path}, version ${status.version}`],
  ]);
  if (status.bad_files) {
    $("#bad").hidden = false;
    $("#bad-title").textContent = `${count(status.bad_files, "file")} that cannot be indexed`;
    await showBadFiles();
  }
}

function facts(pairs) {
  $("#facts").replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

async function showBadFiles() {
  const body = $("#bad tbody");
  const skip = body.children.length;
  try {
    const { total, files } = await ask(`/api/bad-files?top=${BAD_FILES}&skip=${skip}`);
    for (const { path, reason } of files) {
      const row = document.createElement("tr");
      row.append(element("td", path), element("td", reason));
      body.append(row);
    }
    $("#more-bad").hidden = body.children.length >= total || !files.length;
  } catch (error) {
    facts([["Problem", error.message]]);
  }
}

function element(name, content) {
  const made = document.createElement(name);
  made.textContent = content;
  return made;
}

$("#show-status").addEventListener("click", showStatus);
$("#more-bad").addEventListener("click", showBadFiles);

// ---------------------------------------------------------------- searching

$("#search").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = text.value.trim();
  if (!words) return text.focus();
  go({ words });
  show();
});

$("#choose-clip").addEventListener("click", () => $("#clip").click());
$("#clip").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // the same file may be chosen again
  if (!file) return;
  await during(`Sending ${file.name}…`, async (signal) => {
    status ??= await ask("/api/status");
    if (file.size > status.most_clip_bytes) {
      throw new Error(`${file.name} has ${size(file.size)}; a clip has at most ${size(status.most_clip_bytes)}.`);
    }
    const found = await ask(`/api/clips?top=${PAGE}`, { method: "POST", body: file, signal });
    clipName = file.name;
    text.value = "";
    go({ clip: found.clip });
    shown = location.search;
    fill(wanted(), found);
  });
});

for (const [button, step] of [["#previous", -1], ["#next", 1]]) {
  $(button).addEventListener("click", () => {
    const query = wanted();
    go({ ...query, page: query.page + step });
    show({ moveFocus: true });
  });
}

addEventListener("popstate", () => {
  // The link to the results changes the address too.
  if (location.search !== shown) show();
});
addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, textarea, dialog");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    text.focus();
    text.select();
  }
});

show();
