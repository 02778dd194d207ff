// A receiver as a web app in Node would have it: it judges each delivery with the npm package `standardwebhooks`.
//
// The first line of stdout is its port; then one line of JSON for each request, written before the answer. The secret
// comes in REEVE_PEER_SECRET, the package from REEVE_TEST_PEERS. It ends with its stdin, so it outlives no test.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const installed = createRequire(join(process.env.REEVE_TEST_PEERS, "package.json"));
const { Webhook, WebhookVerificationError } = installed("standardwebhooks");
const webhook = new Webhook(process.env.REEVE_PEER_SECRET);

// Anything but a refusal is a fault of the verifier or of the header's form, and ends this program: the test then says so.
function genuine(body, headers) {
  try {
    webhook.verify(body, headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const verdict = genuine(Buffer.concat(chunks).toString("utf8"), request.headers);
  process.stdout.write(`${JSON.stringify({ id: request.headers["webhook-id"], genuine: verdict })}\n`);
  response.writeHead(verdict ? 204 : 401).end();
});
server.listen(0, "127.0.0.1", () => process.stdout.write(`${server.address().port}\n`));

process.stdin.resume();
process.stdin.on("end", () => process.exit());
