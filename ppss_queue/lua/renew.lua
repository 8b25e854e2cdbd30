-- Extends leases of one run by its visibility timeout from now.
-- Returns {state of the run, its reason or '', member that is no longer ours...}.
-- ARGV: run, member...
go_on_when_full()
local run = ARGV[1]
local values = redis.call('HMGET', run_key(run), 'state', 'reason', 'visibility')
local reply = { values[1] or 'unknown', values[2] or '' }
for index = 2, #ARGV do
  local member = ARGV[index]
  if not is_held(run, member) then
    reply[#reply + 1] = member
  else
    local begun = tonumber(redis.call('ZSCORE', registry('wip', run), member)) >= BEGUN
    redis.call('ZADD', registry('wip', run), NOW + (begun and BEGUN or CENTURY) + tonumber(values[3]), member)
  end
end
return reply
