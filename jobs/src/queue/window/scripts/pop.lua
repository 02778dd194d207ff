-- KEYS[1]: the lane's prefix. ARGV[1]: how many ids. Deals places in rounds, to each tenant of the ring as many as its
-- weight; whole rounds at once as long as there are places for them. Who was served goes to the ring's end, so that who was
-- left out comes first the next time. Each turn takes an id or takes the tenant out of the ring, and so it ends.
local P, call, places = KEYS[1], redis.call, tonumber(ARGV[1])
local ring, inring = P .. ':ring', P .. ':inring'
local out = {}
while places > 0 do
  local tenants = call('LRANGE', ring, 0, places - 1)
  if #tenants == 0 then break end
  local weights, sum = call('HMGET', inring, unpack(tenants)), 0
  for i = 1, #tenants do
    weights[i] = math.max(1, tonumber(weights[i] or 1) or 1)
    sum = sum + weights[i]
  end
  local rounds = math.max(1, math.floor(places / sum))
  for i = 1, #tenants do
    if places <= 0 then break end
    call('LPOP', ring)
    local ready = P .. ':ready:' .. tenants[i]
    local popped = call('ZPOPMIN', ready, math.min(places, rounds * weights[i]))
    for j = 1, #popped, 2 do out[#out + 1] = popped[j] end
    places = places - #popped / 2
    if call('EXISTS', ready) == 1 then
      call('RPUSH', ring, tenants[i])
    else
      call('HDEL', inring, tenants[i])
    end
  end
end
return out
