// What the JavaScript programs share. A program is `node PROGRAM URL MODEL BESIDE [WORD…]`, run in the
// folder whose node_modules it uses. Each scenario returns nothing, or a remark that belongs on the page,
// and fails by throwing.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

export const [URL_, MODEL, BESIDE, ...WORDS] = process.argv.slice(2);
export const HUB_MODEL = `HuggingFaceTB/${MODEL}`; // how the Hub writes it, slash and all

// The packages lie where the program is run, not where it is kept.
export const load = createRequire(`${process.cwd()}/`);

export const QUESTION = [{ role: "user", content: "What is the capital of France?" }];
export const STORY = [{ role: "user", content: "Write a very long story about a river, a mill and a miller." }];
export const PLAN = [{ role: "user", content: "Plan a trip of three days to Rome." }];

const CITIES = ["Paris", "Rome", "Oslo"];
// Bounded in every direction: a small model that must follow it is done before it has run out of tokens.
export const TRIP = {
  type: "object",
  properties: {
    city: { type: "string", enum: CITIES },
    days: { type: "integer", minimum: 1, maximum: 9 },
    note: { type: "string", maxLength: 12 },
  },
  required: ["city", "days", "note"],
  additionalProperties: false,
};
export const TOOL = {
  type: "function",
  function: { name: "plan_trip", description: "Plans a trip.", parameters: TRIP },
};
export const NAMED = { type: "function", function: { name: "plan_trip" } };
export const RESULT = JSON.stringify({ hotel: "Albergo", price: 120 });
export const ENOUGH = 128; // tokens for one call

export async function run(scenarios) {
  for (const [scenario, does] of Object.entries(scenarios)) {
    let line;
    try {
      line = { scenario, ok: true, detail: (await does()) ?? "" };
    } catch (error) {
      const place = /use_\w+\.mjs:\d+/.exec(error.stack ?? "")?.[0] ?? "?";
      line = { scenario, ok: false, detail: `${error.name} at ${place}: ${String(error.message).slice(0, 600)}` };
    }
    console.log(JSON.stringify(line));
  }
}

/** `given`, an object or the JSON of one, is valid for TRIP. */
export function checkTrip(given) {
  const trip = typeof given === "string" ? JSON.parse(given) : given;
  assert.deepEqual(Object.keys(trip).sort(), ["city", "days", "note"]);
  assert.ok(CITIES.includes(trip.city), JSON.stringify(trip));
  assert.ok(Number.isInteger(trip.days) && trip.days >= 1 && trip.days <= 9, JSON.stringify(trip));
  assert.ok(typeof trip.note === "string" && [...trip.note].length <= 12, JSON.stringify(trip));
}

export function checkText(text) {
  assert.match(text, /Paris/);
}

/** What `call` fails with. */
export async function errorOf(call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    return error;
  }
  assert.fail(`no error but ${JSON.stringify(answer)}`);
}

export async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

export const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

/** An address at which the model is still loading, until a while after this program's first request. */
export const whileItLoads = (path) => `${BESIDE}/loading/${process.pid}${path}`;

/** How many requests came to that address. */
export const attempts = async () => (await ask(`attempts/${process.pid}`)).attempts;

/** How many requests the server counts as cancelled. */
export const cancelled = async () => (await ask("cancelled")).cancelled;

export async function waitUntilCancelled(number) {
  const deadline = Date.now() + 5000;
  for (let found; (found = await cancelled()) !== number; ) {
    assert.ok(Date.now() < deadline, `${found} cancelled, not ${number}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const ask = async (path) => (await fetch(`${BESIDE}/${path}`)).json();
