// openai for JavaScript.

import assert from "node:assert/strict";
import {
  ENOUGH,
  MODEL,
  NAMED,
  PLAN,
  QUESTION,
  RESULT,
  STORY,
  TOOL,
  TRIP,
  URL_,
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

const { OpenAI } = load("openai");
const client = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: "none", maxRetries: 0 });
const create = (body, options) => client.chat.completions.create({ model: MODEL, ...body }, options);
const withTool = { messages: PLAN, tools: [TOOL], temperature: 0, max_tokens: ENOUGH };

function checkCall(call) {
  assert.equal(call.type, "function");
  assert.equal(call.function.name, "plan_trip");
  assert.ok(call.id);
  assert.equal(typeof call.function.arguments, "string");
  checkTrip(call.function.arguments);
}

await run({
  async text() {
    const answer = await create({ messages: QUESTION, temperature: 0 });
    checkText(answer.choices[0].message.content);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, 45);
  },

  async stream() {
    const chunks = await all(await create({ messages: QUESTION, temperature: 0, stream: true }));
    checkText(textOf(chunks));
    assert.ok(chunks.length > 4);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  },

  async usage_in_stream() {
    const asked = { messages: QUESTION, temperature: 0, stream: true, stream_options: { include_usage: true } };
    const chunks = await all(await create(asked));
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.total_tokens, 45);
  },

  async tool_named() {
    const answer = await create({ ...withTool, tool_choice: NAMED });
    assert.equal(answer.choices[0].message.tool_calls.length, 1);
    checkCall(answer.choices[0].message.tool_calls[0]);
    assert.equal(answer.choices[0].finish_reason, "stop");
  },

  async tool_required() {
    const answer = await create({ ...withTool, tool_choice: "required", parallel_tool_calls: false });
    assert.equal(answer.choices[0].message.tool_calls.length, 1);
    checkCall(answer.choices[0].message.tool_calls[0]);
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    return "with `parallel_tool_calls: false`: the small model calls until `max_tokens`";
  },

  async tool_auto() {
    const { message } = (await create({ ...withTool, tool_choice: "auto" })).choices[0];
    assert.ok(message.content || message.tool_calls, JSON.stringify(message));
  },

  async tool_result() {
    const { message } = (await create({ ...withTool, tool_choice: NAMED })).choices[0];
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: RESULT };
    const answer = await create({ messages: [...PLAN, message, result], temperature: 0, max_tokens: 16 });
    assert.ok(answer.choices[0].message.content);
  },

  async tool_stream() {
    const chunks = await all(await create({ ...withTool, tool_choice: NAMED, stream: true }));
    const calls = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []);
    assert.equal(calls[0].function.name, "plan_trip");
    assert.ok(calls[0].id);
    checkTrip(calls.map((call) => call.function.arguments ?? "").join(""));
  },

  /** `.stream()` puts a call together. */
  async tool_helper() {
    const helper = client.chat.completions.stream({ model: MODEL, ...withTool, tool_choice: NAMED });
    const answer = await helper.finalChatCompletion();
    assert.equal(answer.choices[0].message.tool_calls.length, 1);
    checkCall(answer.choices[0].message.tool_calls[0]);
  },

  async structured() {
    const wanted = { type: "json_schema", json_schema: { name: "trip", schema: TRIP, strict: true } };
    const answer = await create({ messages: PLAN, response_format: wanted, temperature: 0, max_tokens: ENOUGH });
    checkTrip(answer.choices[0].message.content);
  },

  /** `.parse()` reads the answer. */
  async structured_helper() {
    const wanted = { type: "json_schema", json_schema: { name: "trip", schema: TRIP, strict: true } };
    const asked = { model: MODEL, messages: PLAN, response_format: wanted, temperature: 0, max_tokens: ENOUGH };
    const answer = await client.chat.completions.parse(asked);
    checkTrip(answer.choices[0].message.content);
  },

  async bad_temperature() {
    const error = await errorOf(() => create({ messages: QUESTION, temperature: 3 }));
    assert.ok(error instanceof OpenAI.BadRequestError, error);
    assert.equal(error.param, "temperature");
    assert.match(error.message, /temperature/);
  },

  async unknown_model() {
    const error = await errorOf(() => create({ model: "no/such", messages: QUESTION }));
    assert.ok(error instanceof OpenAI.NotFoundError, error);
    assert.equal(error.code, "model_not_found");
    assert.match(error.message, /no\/such/);
  },

  async while_loading() {
    const slow = new OpenAI({ baseURL: whileItLoads("/v1"), apiKey: "none" });
    const answer = await slow.chat.completions.create({ model: MODEL, messages: QUESTION, temperature: 0 });
    checkText(answer.choices[0].message.content);
    assert.equal(await attempts(), 3);
    return "tries again when Retry-After says, twice at most";
  },

  async service() {
    assert.deepEqual((await all(client.models.list())).map((model) => model.id), [MODEL]);
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
    return "the list of models, and one of it";
  },

  async disconnect() {
    const before = await cancelled();
    const stream = await create({ messages: STORY, max_tokens: 1500, stream: true });
    for await (const chunk of stream) {
      assert.ok(chunk);
      break;
    }
    await waitUntilCancelled(before + 1);
  },
});
