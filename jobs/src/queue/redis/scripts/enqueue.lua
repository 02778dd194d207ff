-- ARGV: id tenant kind envelope priority attempts_max delay_ms unique_key. The id of the job that now stands for it: an
-- id that is known already, or a live job with the key, is answered and nothing stored.
local id, tenant, kind, wait = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[7])
if call('EXISTS', job(id)) == 1 then return id end
if ARGV[8] ~= '' then
  local key = #tenant .. ':' .. tenant .. #kind .. ':' .. kind .. ARGV[8]
  local held = call('HGET', P .. ':uniq', key)
  if held then return held end
  call('HSET', P .. ':uniq', key, id)
  call('HSET', job(id), 'uniq', key)
end
call('HSET', job(id), 'tenant', tenant, 'kind', kind, 'env', ARGV[4], 'prio', ARGV[5], 'max', ARGV[6], 'attempt', 0,
     'rescues', 0, 'at', string.format('%.0f', NOW + wait))
if wait > 0 then delay(id, 'scheduled', NOW + wait) else ready(id, tenant) end
return id
