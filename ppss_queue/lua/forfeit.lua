-- Takes back the leases of items that were lost with the host on which they ran; their worker lives.
-- They go to the front of the ready list, in the order given, or fail, as if their worker had died.
-- Returns how many were handed back; those that were lost meanwhile are left alone.
-- ARGV: run, worker, member...
go_on_when_full()
local run, count = ARGV[1], 0
local max_lost = tonumber(redis.call('HGET', run_key(run), 'max_lost')) or 0
for index = #ARGV, 3, -1 do
  local member = ARGV[index]
  if take_back(run, member, max_lost) then
    local job = split_member(member)
    redis.call('HSET', job_key(job), 'status', 'queued')
    redis.call('LPUSH', queue_key(run), job)
    count = count + 1
  end
end
worker_idle(ARGV[2])
settle(run)
return count
