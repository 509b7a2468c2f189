// Keeps marked parts of a page current, shows times in the reader's zone, copies commands.
"use strict";

const clockForm = new Intl.DateTimeFormat([], { timeStyle: "medium" });
const fullForm = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "short" });

function showLocalTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    element.title = element.dateTime;
    element.textContent = (element.dataset.form === "clock" ? clockForm : fullForm).format(moment);
  }
}

async function refresh(part) {
  const response = await fetch(part.dataset.refresh, { headers: { Accept: "text/html" } });
  if (response.redirected || response.status === 401) {
    location.href = "/login"; // the login ended
    return;
  }
  if (!response.ok) throw new Error(`status ${response.status}`);
  const text = await response.text();
  // A person who selects text or fills a form must not lose it.
  const selection = document.getSelection();
  if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return;
  if (part.querySelector("input:focus") || text === part.shown) return;
  part.shown = text;
  part.innerHTML = text;
  showLocalTimes(part);
}

function keepCurrent(part) {
  const everyMs = Number(part.dataset.everyMs);
  let waitMs = everyMs;
  const step = async () => {
    if (!document.hidden) {
      try {
        await refresh(part);
        waitMs = everyMs;
        document.body.classList.remove("away");
      } catch {
        waitMs = Math.min(waitMs * 2, 30000); // the server restarts: ask less and less often
        document.body.classList.add("away");
      }
    }
    if (!part.querySelector("[data-finished]")) setTimeout(step, waitMs);
  };
  setTimeout(step, everyMs);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

showLocalTimes(document);
for (const part of document.querySelectorAll("[data-refresh]")) keepCurrent(part);
