-- KEYS[1]: the lane's prefix, which is its hash tag too. ARGV: ids a tenant may have, seconds that all is kept, then for
-- each tenant: name, weight, how many, and so many pairs of score and id. Repeating it changes nothing.
--   ready:T   ids, by priority and due time     ring   tenants with ids, the next one first     inring   tenant -> weight
local P, call = KEYS[1], redis.call
local most, kept = tonumber(ARGV[1]), ARGV[2]
local ring, inring = P .. ':ring', P .. ':inring'
-- Where the server evicted the ring alone, nobody would come back into it.
if call('LLEN', ring) == 0 then call('DEL', inring) end
local i = 3
while i <= #ARGV do
  local tenant, weight, n = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local ready = P .. ':ready:' .. tenant
  i = i + 3
  call('ZADD', ready, unpack(ARGV, i, i + 2 * n - 1))
  i = i + 2 * n
  call('ZREMRANGEBYRANK', ready, most, -1)
  call('EXPIRE', ready, kept)
  if call('HSET', inring, tenant, weight) == 1 then call('RPUSH', ring, tenant) end
end
call('EXPIRE', ring, kept)
call('EXPIRE', inring, kept)
return 1
