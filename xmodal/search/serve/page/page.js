"use strict";

const element = id => document.getElementById(id);
const form = element("form"), text = element("text"), grid = element("grid"), status_ = element("status");
const PAUSE = 200; // milliseconds without a letter after which what is typed is searched
const SHRUNK = 1024; // pixels of the longer side of a photograph before it is sent

let about = {};
let like = []; // {id, url}
let excluded = [];
let shown = null; // the answer on the page
let looks = null; // a promise of where its words look
let asking = null; // stops the request before
let pressed = null; // the word whose regions are lit

function tell(message, problem = false) {
  status_.textContent = message;
  status_.classList.toggle("problem", problem);
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("the server does not answer");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.reason);
  return content;
}

function addressOf(path, parameters) {
  return path + "?" + new URLSearchParams(parameters);
}

function photograph(id, size) {
  return addressOf("api/photograph", [["id", id], ["size", size]]);
}

// The best candidates are shown at once; that nothing is better takes longer, and is asked for next.
async function search() {
  if (asking) asking.abort();
  const sentence = text.value.trim();
  history.replaceState(null, "", sentence ? addressOf("", [["text", sentence]]) : "./");
  if (!sentence && !like.length) { show(null); return; }
  asking = new AbortController();
  const parameters = [["text", sentence], ["k", 24], ...like.map(one => ["like", one.id])];
  const hidden = [...excluded, ...like.map(one => one.id)];
  const query = exact => addressOf("api/search", [...parameters, ...hidden.map(id => ["exclude", id]), ["exact", exact]]);
  const began = performance.now(), signal = asking.signal;
  try {
    const answer = await ask(query(false), { signal });
    show(answer, sentence, performance.now() - began);
    const provable = !answer.certified && !like.length && !/(^|\s)NOT(\s|$)/.test(sentence);
    if (provable) show(await ask(query(true), { signal }), sentence, performance.now() - began);
    grid.dataset.settled = sentence;
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, true);
  }
}

function idsOf(answer) {
  return answer ? answer.hits.map(hit => hit.id).join("\n") : "";
}

function show(answer, sentence = "", milliseconds = 0) {
  const same = shown && answer && grid.dataset.sentence === sentence && idsOf(shown) === idsOf(answer);
  shown = answer;
  if (!same) {
    looks = pressed = null;
    grid.replaceChildren(...(answer ? answer.hits.map(card) : []));
    grid.dataset.sentence = sentence;
    showWords(answer ? answer.words : []);
  }
  if (!answer) { tell(about.images === undefined ? "" : about.images + " images"); return; }
  const proof = answer.certified ? "certain: nothing else scores higher" :
    answer.recall === null ? "not certified" : "finds " + answer.recall.toFixed(1) + "% of the best 10";
  const likely = answer.no_good_match ? "No good match. " : "";
  tell(likely + answer.scored + " of " + answer.searched + " images scored, " + proof + "; " +
    Math.round(milliseconds) + " ms");
}

function card(hit, place) {
  const figure = element("card").content.cloneNode(true).firstElementChild;
  const find = name => figure.querySelector(name);
  figure.dataset.id = hit.id;
  find("img").alt = hit.id;
  if (about.photographs) find("img").src = photograph(hit.id, "small"); else find("img").remove();
  find(".rank").textContent = place + 1;
  find(".likely").textContent = hit.probability === null ? hit.score.toFixed(3) : likelihood(hit.probability);
  find(".likely").title = "score " + hit.score.toFixed(4);
  find(".name").textContent = hit.id;
  find(".like").hidden = Boolean(about.why_not_like);
  find(".like").addEventListener("click", () => {
    like.push({ id: hit.id, url: about.photographs ? photograph(hit.id, "small") : null });
    changed();
  });
  find(".exclude").addEventListener("click", () => { excluded.push(hit.id); changed(); });
  return figure;
}

function likelihood(probability) {
  const percent = 100 * probability;
  return (percent > 0 && percent < 1 ? "< 1" : Math.round(percent)) + "% likely";
}

function changed() {
  showParts();
  search();
}

function chip(label, remove, url = null) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Remove";
  if (url) { const image = new Image(); image.src = url; image.alt = ""; button.append(image); }
  button.append(label + " \u00d7");
  button.addEventListener("click", () => { remove(); changed(); });
  return button;
}

function showParts() {
  const chips = like.map(one => chip("like this", () => { like = like.filter(other => other !== one); }, one.url));
  if (excluded.length) chips.push(chip("without " + excluded.length + " excluded", () => { excluded = []; }));
  element("parts").replaceChildren(...chips);
}

function showWords(words) {
  const told = Boolean(about.why_not_explained) || !about.photographs;
  element("words").replaceChildren(...words.map((word, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    button.dir = "auto";
    button.textContent = word;
    button.disabled = told;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => press(number));
    return button;
  }));
}

async function press(number) {
  pressed = pressed === number ? null : number;
  [...element("words").children].forEach((button, place) =>
    button.setAttribute("aria-pressed", String(place === pressed)));
  const ids = shown.hits.map(hit => ["id", hit.id]);
  try {
    looks = looks || ask(addressOf("api/explain", [["text", grid.dataset.sentence], ...ids]));
    const explained = await looks;
    explained.images.forEach(light);
  } catch (error) {
    looks = null;
    tell(error.message, true);
  }
}

function drawing(name, attributes, children = []) {
  const one = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  one.append(...children);
  return one;
}

// The image is dark but for where the word looks: the more, the brighter.
function light(look) {
  const place = [...grid.children].findIndex(one => one.dataset.id === look.id);
  if (place < 0) return;
  const svg = grid.children[place].querySelector("svg");
  const weights = pressed === null ? [] : look.weights[pressed] || [];
  const most = Math.max(0, ...weights), whole = { x: 0, y: 0, width: 1, height: 1 };
  grid.children[place].querySelector(".stage").classList.toggle("lit", most > 0);
  if (most === 0) { svg.replaceChildren(); return; }
  const box = region => {
    const [x1, y1, x2, y2] = look.boxes[region];
    return { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
  };
  const holes = weights.map((weight, region) =>
    drawing("rect", { ...box(region), fill: "black", "fill-opacity": (0.7 * weight / most).toFixed(4) }));
  svg.replaceChildren(
    drawing("mask", { id: "look-" + place, maskUnits: "userSpaceOnUse", ...whole },
      [drawing("rect", { ...whole, fill: "white" }), ...holes]),
    drawing("rect", { ...whole, class: "dark", mask: "url(#look-" + place + ")" }),
    drawing("rect", { ...box(weights.indexOf(most)), class: "most" }));
}

async function shrunk(file) {
  try {
    const picture = await createImageBitmap(file);
    const by = Math.min(1, SHRUNK / Math.max(picture.width, picture.height));
    if (by === 1) return file;
    const canvas = new OffscreenCanvas(Math.round(by * picture.width), Math.round(by * picture.height));
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  } catch {
    return file; // of a kind that this browser does not show; the server may read it
  }
}

async function take(file) {
  if (!file) return;
  if (about.why_not_sent) { tell(about.why_not_sent, true); return; }
  tell("Looking at " + file.name + " ...");
  try {
    const content = await shrunk(file);
    const sent = await ask("api/photograph", { method: "POST", body: content,
      headers: { "content-type": content.type || "application/octet-stream" } });
    like = [{ id: sent.id, url: URL.createObjectURL(content) }];
    changed();
  } catch (error) {
    tell(error.message, true);
  }
}

let typing = null;
text.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(search, PAUSE); });
form.addEventListener("submit", event => { event.preventDefault(); clearTimeout(typing); search(); });
element("file").addEventListener("change", event => { take(event.target.files[0]); event.target.value = ""; });
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, event => {
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragover");
    if (name === "drop") take([...event.dataTransfer.files].find(file => file.type.startsWith("image/")));
  });

ask("api/about").then(told => {
  about = told;
  element("drop").hidden = Boolean(about.why_not_sent);
  text.value = new URLSearchParams(location.search).get("text") || "";
  if (text.value) search(); else show(null);
}, error => tell(error.message, true));
