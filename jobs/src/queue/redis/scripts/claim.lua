-- ARGV: token n worker lease_ms. {more, job…}, each {id tenant kind envelope attempt max rescues priority}.
-- Deals places in rounds: each tenant at the ring's head gets its weight, as far as its cap allows, and goes to the end.
-- Ends when all places are dealt, when a whole round brought nothing, or after so many tenants that the next claim goes on.
if call('EXISTS', P .. ':paused') == 1 then return {0} end
local token, places, worker, lease = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local out, in_vain, looks = {0}, 0, 4 * places + 100

local function take(id, tenant)
  local found = call('HMGET', job(id), 'kind', 'env', 'max', 'rescues', 'prio')
  if not found[1] then return false end
  local attempt = call('HINCRBY', job(id), 'attempt', 1)
  -- A job that lost a lease before says itself when it starts; see upkeep.
  call('HSET', job(id), 'state', 'running', 'tok', token, 'worker', worker,
       'started', tonumber(found[4]) == 0 and NOW or '')
  call('ZADD', P .. ':leases', NOW + lease, id)
  call('SADD', P .. ':run:' .. tenant, id)
  out[#out + 1] = {id, tenant, found[1], found[2] or '', attempt, tonumber(found[3]), tonumber(found[4]), tonumber(found[5])}
  return true
end

while places > 0 and in_vain < call('LLEN', P .. ':ring') do
  if looks == 0 then
    out[1] = 1
    break
  end
  looks = looks - 1
  local tenant = call('LPOP', P .. ':ring')
  local weight, cap, paused = string.match(call('HGET', P .. ':rules', tenant) or '', '^(%d+):(%-?%d+):(%d)$')
  local share = math.min(places, tonumber(weight) or 1)
  if paused == '1' then share = 0 end
  if cap and tonumber(cap) >= 0 then
    share = math.min(share, tonumber(cap) - call('SCARD', P .. ':run:' .. tenant))
  end
  local served = 0
  if share > 0 then
    local popped = call('ZPOPMIN', P .. ':ready:' .. tenant, share)
    for i = 1, #popped, 2 do
      if take(popped[i], tenant) then served = served + 1 end
    end
  end
  places = places - served
  if call('EXISTS', P .. ':ready:' .. tenant) == 1 then
    call('RPUSH', P .. ':ring', tenant)
    in_vain = served > 0 and 0 or in_vain + 1
  else
    call('SREM', P .. ':inring', tenant)
    if served > 0 then in_vain = 0 end
  end
end
return out
