// Load for a WebSocket server: rooms of clients that talk, each message timed from its sending to each of its arrivals.
// One process does both, so that they have one clock. It tells what happens as lines of JSON, and goes on at each line it reads.
//
//     NODE_PATH=... node generate.js '{"url": ..., "dialect": "json", "clients": 400, "room": 50, "rate": 1500, "seconds": 5}'
'use strict';
const WebSocket = require('ws');
const plan = { dialect: 'json', ramp: 500, size: 128, room: 50, rate: 0, seconds: 0, ...JSON.parse(process.argv[2]) };

// How the servers want to be spoken to. Replies and deliveries are told apart by what they contain; all relay `text` as it is.
const DIALECTS = {
  json: {
    join: room => JSON.stringify({ op: 'join', room }),
    say: (room, text) => `{"op":"say","room":"${room}","text":"${text}"}`,
    users: room => JSON.stringify({ op: 'users', room }),
    begin: (ws, go) => go(),
    read: text => JSON.parse(text),
  },
  socketio: { // Engine.IO 4 on a bare WebSocket: 0 opens, 2 asks for 3, 40 connects, 42 is an event
    join: room => `42["join","${room}"]`,
    say: (room, text) => `42["say",{"room":"${room}","text":"${text}"}]`,
    users: room => `42["users","${room}"]`,
    begin: (ws, go) => ws.on('message', data => {
      if (data[0] === 0x30) ws.send('40');
      else if (data[0] === 0x32) ws.send('3');
      else if (data[0] === 0x34 && data[1] === 0x30) go();
    }),
    read: text => (text.startsWith('42') ? { op: 'users', ...JSON.parse(text.slice(2))[1] } : {}),
  },
};
const dialect = DIALECTS[plan.dialect];
const now = () => performance.now();
const tell = what => process.stdout.write(JSON.stringify(what) + '\n');
const MARK = 0x7e; // '~' stands before the time at which a message was sent, in microseconds, and before and behind its sender
const BUCKET = 0.1, buckets = new Uint32Array(100000); // latencies by tenths of a millisecond

const clients = [];
let loading = false, ending = false, began = 0, sent = 0, expected = 0, delivered = 0, lost = 0, failed = 0, joined = 0, silence = 0;
let counts = null;
const said = new Uint32Array(plan.clients), heard = new Uint32Array(plan.clients * plan.room); // by sender; by receiver and sender

function open(index, first) {
  const last = first ? now() : clients[index].last; // who lost its connection has been without news all the time
  // Calm is who has had one connection all the time.
  const client = { room: `r${Math.floor(index / plan.room)}`, ws: null, last, ready: false, index, calm: first };
  clients[index] = client;
  // Many source addresses: one has no more than some 28,000 ports, and each is kept for a minute after its connection.
  const ws = client.ws = new WebSocket(plan.url, {
    perMessageDeflate: false, skipUTF8Validation: true, handshakeTimeout: 15000, localAddress: `127.0.${1 + index % 200}.1`,
  });
  ws.on('open', () => dialect.begin(ws, () => ws.send(dialect.join(client.room))));
  ws.on('message', data => receive(client, data));
  ws.on('error', error => { if (++failed <= 3) tell({ event: 'error', text: error.message }); });
  ws.on('close', () => {
    if (ending) return;
    client.calm = false;
    if (client.ready) { lost++; joined--; client.ready = false; }
    else if (first) return advance();
    setTimeout(() => open(index, false), 50 + Math.random() * 200);
  });
}

function receive(client, data) {
  const start = data.indexOf(MARK);
  if (start < 0) return news(client, data);
  let sentAt = 0, sender = 0, place = start + 1;
  for (; data[place] !== MARK; place++) sentAt = sentAt * 10 + data[place] - 48;
  for (place++; data[place] !== MARK; place++) sender = sender * 10 + data[place] - 48;
  heard[client.index * plan.room + sender % plan.room]++;
  const at = now();
  buckets[Math.min(buckets.length - 1, Math.floor((at - sentAt / 1000) / BUCKET))]++;
  if (at - client.last > silence) silence = at - client.last;
  client.last = at;
  delivered++;
}

function news(client, data) {
  if (data.indexOf('"users"') < 0) return;
  const found = dialect.read(data.toString());
  if (!client.ready) { client.ready = true; joined++; advance(); }
  else if (counts) counts[client.room] = found.count ?? found.users.length;
}

let stage = 'opening', made = 0;
function advance() {
  if (stage === 'opening' && joined + failed >= plan.clients) {
    stage = 'open';
    tell({ event: 'open', joined, failed, seconds: (now() - began) / 1000 });
  }
}

function load() {
  stage = 'load'; loading = true; began = now(); silence = 0;
  for (const client of clients) client.last = began;
  tell({ event: 'load' });
  const pad = 'x'.repeat(Math.max(0, plan.size - 64));
  const timer = setInterval(() => {
    const due = Math.floor(Math.min(plan.seconds, (now() - began) / 1000) * plan.rate);
    while (sent < due) {
      const client = clients[(sent * plan.room + Math.floor(sent * plan.room / plan.clients)) % plan.clients];
      sent++; expected += plan.room;
      if (client.ws.readyState === WebSocket.OPEN && client.ready) {
        said[client.index]++;
        client.ws.send(dialect.say(client.room, `~${Math.round(now() * 1000)}~${client.index}~${pad}`));
      }
    }
    if (now() - began < plan.seconds * 1000) return;
    clearInterval(timer);
    settle();
  }, 2);
}

function settle() { // until everything has come, or nothing has for a second
  loading = false;
  const stopped = now();
  for (const client of clients) silence = Math.max(silence, Math.min(stopped, plan.seconds * 1000 + began) - client.last);
  let before = delivered, quiet = now();
  const timer = setInterval(() => {
    if (delivered !== before) { before = delivered; quiet = now(); }
    if (delivered < expected && now() - quiet < 1000) return;
    clearInterval(timer);
    const ranks = [0.5, 0.99, 0.999].map(share => share * delivered), found = [];
    for (let place = 0, sum = 0; place < buckets.length && found.length < ranks.length; place++) {
      sum += buckets[place];
      while (found.length < ranks.length && sum >= ranks[found.length]) found.push((place + 1) * BUCKET);
    }
    tell({ event: 'done', seconds: (quiet - began) / 1000, sent, expected, delivered, lost, p50: found[0], p99: found[1], p999: found[2], silence, ...calm() });
  }, 20);
}

function calm() { // what those who kept their connections have of each other
  let count = 0, due = 0, missed = 0, twice = 0;
  for (const receiver of clients) {
    if (!receiver.calm) continue;
    count++;
    for (let at = 0; at < plan.room; at++) {
      const sender = receiver.index - receiver.index % plan.room + at, got = heard[receiver.index * plan.room + at];
      due += clients[sender].calm ? said[sender] : 0;
      twice += Math.max(0, got - said[sender]);
      if (clients[sender].calm) missed += Math.max(0, said[sender] - got);
    }
  }
  return { calm: count, due, missed, twice };
}

function census() { // how many the server has in each room, and how many there should be
  counts = {};
  const firsts = clients.filter((client, index) => index % plan.room === 0);
  for (const client of firsts) if (client.ws.readyState === WebSocket.OPEN) client.ws.send(dialect.users(client.room));
  const since = now(), timer = setInterval(() => {
    if (Object.keys(counts).length < firsts.length && now() - since < 3000) return;
    clearInterval(timer);
    tell({ event: 'census', rooms: firsts.length, full: Object.values(counts).filter(count => count === plan.room).length });
  }, 10);
}

began = now();
const opening = setInterval(() => {
  for (const due = Math.min(plan.clients, (now() - began) / 1000 * plan.ramp); made < due; made++) open(made, true);
  if (made >= plan.clients) clearInterval(opening);
}, 10);

require('readline').createInterface({ input: process.stdin }).on('line', word => {
  if (word === 'load') load();
  else if (word === 'census') census();
}).on('close', () => {
  ending = true;
  for (const client of clients) client.ws.terminate();
  process.exit(0);
});
