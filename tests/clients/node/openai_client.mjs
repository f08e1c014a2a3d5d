// The official Node client: chat, stream, tools, responses, errors.
import assert from "node:assert";
import OpenAI from "openai";

const baseURL = process.env.LORACHAT_BASE_URL;
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const model = "base";
const messages = [{ role: "user", content: "What is the weather in Rome?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};

const whole = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, whole.choices[0].message.content);

const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const stream = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", max_tokens: 100 });
const final = await stream.finalChatCompletion();
assert.ok("city" in JSON.parse(final.choices[0].message.tool_calls[0].function.arguments));
assert.equal(final.choices[0].finish_reason, "tool_calls");

const response = await client.responses.create({ model, input: "Say hello", max_output_tokens: 12 });
assert.ok(response.output_text);
const kinds = [];
for await (const event of await client.responses.create({ model, input: "Say hello", max_output_tokens: 12, stream: true }))
  kinds.push(event.type);
assert.equal(kinds[0], "response.created");

await assert.rejects(client.chat.completions.create({ model: "gpt-4o", messages }), { code: "model_not_found" });
console.log("EXERCISED chat, stream, stream helper with tools, responses (+stream), errors");
