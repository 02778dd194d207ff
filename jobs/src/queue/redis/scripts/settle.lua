-- ARGV: id token outcome delay_ms error of each. The ids that were settled; the outcomes are those of reeve.settle.
local known = {completed = 1, cancelled = 1, retry = 1, snooze = 1, release = 1, interrupted = 1, dead = 1, quarantine = 1}
for i = 3, #ARGV, 5 do
  -- All before any: a script that fails half way is not rolled back.
  if not known[ARGV[i]] then return redis.error_reply('ERR unknown outcome ' .. ARGV[i]) end
end
local settled = {}
for i = 1, #ARGV, 5 do
  local id, outcome, wait = ARGV[i], ARGV[i + 2], tonumber(ARGV[i + 3])
  if get(id, 'tok') == ARGV[i + 1] then
    local tenant = get(id, 'tenant')
    local given_back = outcome == 'release' or outcome == 'interrupted'
    release_lease(id, tenant)
    if ARGV[i + 4] ~= '' then call('HSET', job(id), 'error', ARGV[i + 4]) end
    if get(id, 'cancel') and (outcome == 'retry' or outcome == 'snooze' or given_back) then
      outcome, given_back = 'cancelled', false
    end
    if not given_back then call('HSET', job(id), 'rescues', 0) end
    if outcome == 'snooze' or given_back then call('HINCRBY', job(id), 'attempt', -1) end
    if outcome == 'completed' or outcome == 'cancelled' then
      over(id, outcome)
    elseif outcome == 'dead' or (outcome == 'retry' and int(id, 'attempt') >= int(id, 'max')) then
      park(id, 'dead')
    elseif outcome == 'quarantine' then
      park(id, 'quarantined')
    elseif outcome == 'snooze' or (outcome == 'retry' and wait > 0) then
      delay(id, outcome == 'snooze' and 'scheduled' or 'retryable', NOW + wait)
    else
      if outcome == 'retry' then call('HSET', job(id), 'at', string.format('%.0f', NOW)) end
      ready(id, tenant)
    end
    settled[#settled + 1] = id
  end
end
return settled
