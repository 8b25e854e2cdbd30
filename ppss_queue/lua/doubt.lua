-- Asks for a second opinion on an item that failed: it goes back, to be tried on another node, and uses up no retry.
-- Not where the item has failed on two nodes before, where no other node takes items of the run, or where there is no
-- reason to blame the node: its program is not there, nothing has succeeded on it yet, or too many failed in a row, of
-- which each that turned out to be the item's fault takes some.
-- Returns 1 if it goes back, 0 if it has failed here (which `fail` is to record).
-- ARGV: run, worker, member, outcome (JSON), seconds, retry delay in seconds or '' (never), exit code or '',
--       failures in a row, 1 if one succeeded before or 0
go_on_when_full()
local run, worker, member, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local code, streak, proven = ARGV[7], tonumber(ARGV[8]), ARGV[9] == '1'
local job, token = split_member(member)
local node = node_of(worker)
local known = redis.call('HMGET', job_key(job), 'token', 'guilty')
local doubt = redis.call('HGET', doubts_key(run), job)
if doubt then
  local _, _, first = parse_doubt(doubt)
  return first == node and known[1] == token and 1 or 0 -- 1: repeated
end
if known[2] then return 0 end
local innocent = tonumber(redis.call('HGET', record_key(run), node) or 0)
local no_program = code == '126' or code == '127'
local to_blame = no_program or (not proven and innocent == 0) or streak >= 3 * 2 ^ innocent
if not to_blame or not other_node(run, node) then return 0 end
if not end_lease(run, member) then
  settle(run)
  return 0
end
redis.call('HSET', job_key(job), 'status', 'queued', 'outcome', outcome, 'token', token, 'worker_name', worker)
local patience = no_program and '-' or string.format('%.3f', NOW + DOUBT_SECONDS)
redis.call('HSET', doubts_key(run), job, patience .. ' ' .. (ARGV[6] == '' and '-' or ARGV[6]) .. ' ' .. node)
redis.call('LPUSH', queue_key(run), job)
redis.call('HINCRBYFLOAT', run_key(run), 'work_seconds', ARGV[5])
worker_idle(worker)
return 1
