// Streams one completion through OpenAI's SDK, and prints each token with its time in
// milliseconds. The SDK takes the base URL and the key from the environment.
import OpenAI from "openai";

const openai = new OpenAI();
const begin = performance.now();
const stream = await openai.chat.completions.create({
  model: "harbour",
  messages: [{ role: "user", content: "The keeper" }],
  max_tokens: 12,
  stream: true,
});
for await (const part of stream) {
  const token = part.choices[0]?.delta?.content;
  if (token) console.log(JSON.stringify({ token, at: Math.round(performance.now() - begin) }));
}
const whole = await openai.chat.completions.create({
  model: "harbour",
  messages: [{ role: "user", content: "The keeper" }],
  max_tokens: 12,
});
console.log(JSON.stringify({ whole: whole.choices[0].message.content }));
