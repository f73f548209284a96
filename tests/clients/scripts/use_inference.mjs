// @huggingface/inference, on the Hugging Face path: with the word `2` the release of 2024, with `4` the latest.

import assert from "node:assert/strict";
import {
  ENOUGH,
  HUB_MODEL,
  NAMED,
  PLAN,
  QUESTION,
  RESULT,
  STORY,
  TOOL,
  TRIP,
  URL_,
  WORDS,
  all,
  attempts,
  cancelled,
  checkText,
  checkTrip,
  errorOf,
  load,
  run,
  textOf,
  waitUntilCancelled,
  whileItLoads,
} from "./scenarios.mjs";

const old = WORDS[0] === "2";
const inference = load(old ? "hf-inference-2" : "@huggingface/inference");
const place = `/models/${HUB_MODEL}`;

// The old one, if it is not told a model, asks the Hub for one, even at an address of one's own.
const named = old ? { model: HUB_MODEL } : {};

function at(url) {
  const endpoint = (old ? new inference.HfInference() : new inference.InferenceClient()).endpoint(url);
  return {
    whole: (body, options) => endpoint.chatCompletion({ ...named, ...body }, options),
    stream: (body, options) => endpoint.chatCompletionStream({ ...named, ...body }, options),
  };
}

const client = at(URL_ + place);
// Each release writes a choice as its own types have it.
const choice = old ? { FunctionName: "plan_trip" } : NAMED;
const withTool = { messages: PLAN, tools: [TOOL], temperature: 0, max_tokens: ENOUGH };

function checkCall(call, { streamed = false } = {}) {
  assert.equal(call.type, "function");
  assert.equal(call.function.name, "plan_trip");
  assert.equal(call.id, streamed ? "0" : 0);
  if (!streamed) {
    assert.equal(typeof call.function.arguments, "object");
    checkTrip(call.function.arguments);
  }
}

await run({
  async text() {
    const answer = await client.whole({ messages: QUESTION, temperature: 0 });
    checkText(answer.choices[0].message.content);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, 45);
  },

  async stream() {
    const chunks = await all(client.stream({ messages: QUESTION, temperature: 0 }));
    checkText(textOf(chunks));
    assert.ok(chunks.length > 4);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  },

  async usage_in_stream() {
    const asked = { messages: QUESTION, temperature: 0, stream_options: { include_usage: true } };
    const last = (await all(client.stream(asked))).at(-1);
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.total_tokens, 45);
  },

  async tool_named() {
    const answer = await client.whole({ ...withTool, tool_choice: choice });
    assert.equal(answer.choices[0].message.tool_calls.length, 1);
    checkCall(answer.choices[0].message.tool_calls[0]);
    assert.ok(!("content" in answer.choices[0].message));
    return old ? "the choice as `{FunctionName}`" : "";
  },

  async tool_required() {
    const chunks = await all(client.stream({ ...withTool, tool_choice: "required" }));
    const calls = chunks.map((chunk) => chunk.choices[0].delta.tool_calls).filter((call) => call?.index === 0);
    checkTrip(calls.map((call) => call.function.arguments).join(""));
    return (
      "streamed, and only the first call is looked at: the small model calls until `max_tokens`, " +
      "and without a stream a call that was cut off is a 422"
    );
  },

  async tool_auto() {
    const answer = await client.whole({ ...withTool, tool_choice: old ? "OneOf" : "auto" });
    const message = answer.choices[0].message;
    assert.ok(message.content || message.tool_calls, JSON.stringify(message));
  },

  async tool_result() {
    const { message } = (await client.whole({ ...withTool, tool_choice: choice })).choices[0];
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: RESULT };
    const answer = await client.whole({ messages: [...PLAN, message, result], temperature: 0, max_tokens: 16 });
    assert.ok(answer.choices[0].message.content);
  },

  async tool_stream() {
    const chunks = await all(client.stream({ ...withTool, tool_choice: choice }));
    // `tool_calls` of a delta is one object in the task's schema.
    const calls = chunks.map((chunk) => chunk.choices[0].delta.tool_calls).filter(Boolean);
    checkCall(calls[0], { streamed: true });
    checkTrip(calls.map((call) => call.function.arguments).join(""));
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  },

  async structured() {
    const wanted = old
      ? { type: "json", value: TRIP }
      : { type: "json_schema", json_schema: { name: "trip", schema: TRIP, strict: true } };
    const answer = await client.whole({ messages: PLAN, response_format: wanted, temperature: 0, max_tokens: ENOUGH });
    checkTrip(answer.choices[0].message.content);
  },

  async bad_temperature() {
    const error = await errorOf(() => client.whole({ messages: QUESTION, temperature: 3 }));
    assert.match(error.message, /temperature/);
    if (old) return "an Error with the message";
    assert.ok(error instanceof inference.InferenceClientProviderApiError);
    assert.equal(error.httpResponse.status, 422);
  },

  async unknown_model() {
    const error = await errorOf(() => at(`${URL_}/models/no/such`).whole({ messages: QUESTION }));
    assert.match(error.message, /no\/such/);
    if (old) return "an Error with the message";
    assert.ok(error instanceof inference.InferenceClientProviderApiError);
    assert.equal(error.httpResponse.status, 404);
  },

  async while_loading() {
    const answer = await at(whileItLoads(place)).whole({ messages: QUESTION, temperature: 0 });
    checkText(answer.choices[0].message.content);
    const count = await attempts();
    if (old) {
      assert.equal(count, 2);
      return "tries again once, with X-Wait-For-Model";
    }
    // It asks again at once: what bounds it is that the server takes its time before a 503.
    assert.ok(count >= 2 && count <= 8, String(count));
    return "tries again without a pause; the server's own before each 503 slows it down";
  },

  async disconnect() {
    const before = await cancelled();
    const leaving = new AbortController();
    const options = { fetch: (url, init) => fetch(url, { ...init, signal: leaving.signal }) };
    const stream = client.stream({ messages: STORY, max_tokens: 1500 }, options);
    await stream.next();
    leaving.abort();
    await waitUntilCancelled(before + 1);
    return "by an AbortController";
  },
});
