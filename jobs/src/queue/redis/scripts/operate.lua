-- ARGV: act id argument. The job's former state, false when there is none, or an error that says why not.
--   cancel REASON   at once, or by the next renewal when it runs        retry ATTEMPTS   a fresh set of attempts, now
local act, id, argument = ARGV[1], ARGV[2], ARGV[3]
local state = get(id, 'state')
if not state or state == 'completed' or state == 'cancelled' then return false end
local tenant = get(id, 'tenant')
if act == 'cancel' and state == 'running' then
  call('HSET', job(id), 'cancel', argument)
  return state
end
if act == 'retry' and (state == 'running' or state == 'available') then
  return redis.error_reply('ERR only dead, quarantined, retryable and scheduled jobs can be retried; it is ' .. state)
end
if act == 'retry' then
  local key = get(id, 'uniq')
  local holder = key and call('HGET', P .. ':uniq', key)
  if holder and holder ~= id then return redis.error_reply('ERR another live job has its unique key: ' .. holder) end
  if key then call('HSET', P .. ':uniq', key, id) end
end
call('ZREM', P .. ':ready:' .. tenant, id)
call('ZREM', P .. ':delayed', id)
call('SREM', P .. ':parked', id)
if act == 'cancel' then
  call('HSET', job(id), 'error', argument)
  over(id, 'cancelled')
else
  call('HSET', job(id), 'rescues', 0, 'max', int(id, 'attempt') + tonumber(argument), 'at', string.format('%.0f', NOW))
  call('HDEL', job(id), 'cancel')
  ready(id, tenant)
end
return state
