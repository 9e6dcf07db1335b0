// The operator token of this tab, which is asked for when the process wants one.
import { $, text } from "./dom.js";

const stored = "operatorToken";

export const refused = (status, message) => Object.assign(new Error(message), { status });

// authorized sends something with the token that this tab has, and asks for the token as
// long as the process wants another.
export async function authorized(send) {
  for (;;) {
    const token = sessionStorage.getItem(stored);
    try {
      return await send(token ? { Authorization: "Bearer " + token } : {});
    } catch (e) {
      if (e.status !== 401) throw e;
      await askToken(e);
    }
  }
}

// get fetches what may ask for a token to be read.
export const get = (path) => authorized(async (token) => {
  const answer = await fetch(path, { headers: token });
  if (answer.status === 401) throw refused(401, (await answer.json()).error);
  return answer;
});

let asking = null; // whoever waits for a token waits for the same one
function askToken(refusal) {
  return (asking ??= askAnew(refusal).finally(() => { asking = null; }));
}

function askAnew(refusal) {
  text($("a-why"), refusal.message);
  $("asking").returnValue = "";
  $("asking").showModal();
  return new Promise((done, failed) => {
    $("asking").addEventListener("close", () => {
      const token = $("a-token").value;
      $("a-token").value = "";
      if ($("asking").returnValue !== "given") return failed(refusal);
      sessionStorage.setItem(stored, token);
      done();
    }, { once: true });
  });
}

$("a-no").addEventListener("click", () => $("asking").close());
