-- Before each script: names of a lane's keys, and the steps that several scripts share. KEYS[1] is the lane's prefix; its
-- hash tag is the whole of it, so all keys of a lane lie in one slot. KEYS[2] never exists and is not read; see `call` in
-- mod.rs. Time is the server's: no script takes one from its caller.
--   j:ID        a job (hash): tenant kind env state prio at attempt max rescues tok worker started cancel error uniq
--   ready:T     a tenant's ready jobs, by priority and due time     run:T   ids that it runs
--   ring        tenants with ready jobs, the next one first         inring  who stands there
--   delayed     by due time      leases   by expiry     parked   ids that wait for an operator
--   uniq        key -> live job  rules    tenant -> "weight:running_max:paused"         paused  the lane is
local P = KEYS[1]
local call = redis.call
local time = call('TIME')
local NOW = time[1] * 1000 + math.floor(time[2] / 1000)
-- Above any time in ms until the year 2248; priorities up to 4 leave the sum exact.
local PRIORITY = 2 ^ 43
-- What is over is remembered this long, so that a repeated call finds it.
local KEPT_SECS = 3600

local function job(id) return P .. ':j:' .. id end
local function get(id, field) return call('HGET', job(id), field) end
local function int(id, field) return tonumber(get(id, field) or 0) end

local function ready(id, tenant)
  call('HSET', job(id), 'state', 'available')
  call('ZADD', P .. ':ready:' .. tenant, int(id, 'prio') * PRIORITY + int(id, 'at'), id)
  if call('SADD', P .. ':inring', tenant) == 1 then call('RPUSH', P .. ':ring', tenant) end
end

local function delay(id, state, due)
  call('HSET', job(id), 'state', state, 'at', string.format('%.0f', due))
  call('ZADD', P .. ':delayed', due, id)
end

local function release_lease(id, tenant)
  call('HDEL', job(id), 'tok')
  call('ZREM', P .. ':leases', id)
  call('SREM', P .. ':run:' .. tenant, id)
end

local function release_key(id)
  local key = get(id, 'uniq')
  if key and call('HGET', P .. ':uniq', key) == id then call('HDEL', P .. ':uniq', key) end
end

local function over(id, state)
  release_key(id)
  call('HSET', job(id), 'state', state)
  call('HDEL', job(id), 'env')
  call('EXPIRE', job(id), KEPT_SECS)
end

local function park(id, state)
  release_key(id)
  call('HSET', job(id), 'state', state)
  call('SADD', P .. ':parked', id)
end
