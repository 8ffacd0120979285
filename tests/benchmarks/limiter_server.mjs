// One server with one rate limiter from npm, for `limiters.py`: node limiter_server.mjs MODULES KIND PORT
// MODULES: a node_modules folder. KIND: express (express-rate-limit), flexible-100-60, flexible-5-3 (rate-limiter-flexible).
import { createRequire } from "node:module";

const [modules, kind, port] = process.argv.slice(2);
const require = createRequire(modules + "/");
const express = require("express");
const app = express();
const key = (request) => request.headers.authorization || "";

if (kind === "express") {
  const { rateLimit } = require("express-rate-limit");
  app.use(rateLimit({ windowMs: 60_000, limit: 100, standardHeaders: "draft-8", legacyHeaders: true, keyGenerator: key }));
} else {
  const [, points, duration] = kind.split("-").map(Number);
  const { RateLimiterMemory } = require("rate-limiter-flexible");
  const limiter = new RateLimiterMemory({ points, duration });
  app.use((request, response, next) =>
    limiter.consume(key(request)).then(
      () => next(),
      (rejection) => {
        response.set("Retry-After", String(Math.ceil(rejection.msBeforeNext / 1000)));
        response.status(429).send("Too Many Requests");
      },
    ),
  );
}
app.get("/workflows", (_, response) => response.json({ workflows: [] }));
app.listen(Number(port), "127.0.0.1");
