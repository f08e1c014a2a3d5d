// The Vercel AI SDK: text, stream, a tool, an object by schema.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const lorachat = createOpenAICompatible({
  name: "lorachat",
  baseURL: process.env.LORACHAT_BASE_URL,
  supportsStructuredOutputs: true,
});
const model = lorachat("base");
const prompt = "Say hello";
const maxOutputTokens = 60;

const whole = await generateText({ model, prompt, maxOutputTokens, temperature: 0 });
assert.ok(whole.text);
assert.ok(whole.usage.outputTokens > 0);
let text = "";
for await (const part of streamText({ model, prompt, maxOutputTokens, temperature: 0 }).textStream) text += part;
assert.equal(text, whole.text);

const called = await generateText({
  model,
  prompt: "Weather in Rome?",
  maxOutputTokens: 100,
  toolChoice: "required",
  tools: { weather: tool({ description: "The weather", inputSchema: z.object({ city: z.string().max(20) }) }) },
});
assert.ok("city" in called.toolCalls[0].input);

const fruit = await generateText({
  model,
  prompt: "Name a fruit",
  maxOutputTokens: 100,
  output: Output.object({ schema: z.object({ name: z.string().max(20), colour: z.enum(["red", "green"]) }) }),
});
assert.ok(["red", "green"].includes(fruit.output.colour));
console.log("EXERCISED generateText, streamText, tools, Output.object");
