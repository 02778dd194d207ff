-- ARGV: lease_ms, then id token of each job held. {id, cancel reason or ''} of each that still is.
local out = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  if get(id, 'tok') == ARGV[i + 1] then
    call('ZADD', P .. ':leases', NOW + tonumber(ARGV[1]), id)
    out[#out + 1] = {id, get(id, 'cancel') or ''}
  end
end
return out
