-- Whether the node or the item is to blame for a failure, put behind lib.lua in the scripts that use it.

-- How long another node is waited for where the evidence against the first one is weak.
local DOUBT_SECONDS = 60

-- Items of one run that failed on a node and wait for a second opinion: at most so many.
local DOUBTS_MAX = 3

-- A node on which so many items failed that another one did, with no success in between, is quarantined.
local MARKS_MAX = 3

local function parse_doubt(value) return string.match(value, '^(%S+) (%S+) (.*)$') end

local function is_listed(list, word) return string.find(',' .. list .. ',', ',' .. word .. ',', 1, true) ~= nil end

-- Whether another node than this one takes items of the run.
local function other_node(run, node)
  local bare = redis.call('HGET', run_key(run), 'bare') == '1'
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'nodes', NOW - 30, '+inf')) do
    if other ~= node and redis.call('HEXISTS', node_key(other), 'paused') == 0 then
      for _, worker in ipairs(redis.call('SMEMBERS', crew_key(other))) do
        local facts = redis.call('HMGET', R .. 'worker:' .. worker, 'serves', 'alone', 'command', 'stopping')
        local serves = facts[1] and (facts[1] == '' or is_listed(facts[1], run)) and not is_listed(facts[2] or '', run)
        if serves and facts[4] == '0' and (not bare or facts[3] == '1') then return true end
      end
    end
  end
  return false
end

-- How an attempt failed, in a few words. No JSON library here reads the escapes of bytes that are no UTF-8.
local function how_failed(outcome)
  local signal = string.match(outcome, '"signal":(%d+)')
  return signal and 'killed by signal ' .. signal or 'exit ' .. (string.match(outcome, '"exit_code":(%d+)') or '?')
end

-- Another node succeeded with what failed on this one, as `outcome` tells: with too many of these it is paused.
local function mark(run, node, outcome)
  local marks = redis.call('HINCRBY', record_key(run), node .. '!', 1)
  if marks < MARKS_MAX or redis.call('HEXISTS', node_key(node), 'paused') == 1 then return end
  if redis.call('EXISTS', facts_key(node)) == 0 then return end -- it has left
  local how, parsed, fields = how_failed(outcome), pcall(cjson.decode, outcome)
  if parsed and fields.last_line then how = how .. ' "' .. fields.last_line .. '"' end
  local reason = string.format('%d items failed here (%s) that other nodes did', marks, how)
  if other_node(run, node) then
    redis.call('HSET', node_key(node), 'paused', 'quarantined: ' .. reason,
      'id', redis.call('HGET', facts_key(node), 'id') or '')
  else
    redis.call('HSET', facts_key(node), 'doubt', reason .. ', but it is the last node')
  end
  redis.call('INCR', P .. 'control')
end

-- A second opinion, where one was asked for: the item ended on this node, or failed there too.
local function settle_doubt(run, job, node, succeeded, before)
  local doubt = redis.call('HGET', doubts_key(run), job)
  if not doubt then return end
  redis.call('HDEL', doubts_key(run), job)
  local _, _, first = parse_doubt(doubt)
  if first == node then return end
  if succeeded then
    mark(run, first, before)
  else
    redis.call('HSET', job_key(job), 'guilty', 1)
    redis.call('HINCRBY', record_key(run), first, 1)
    redis.call('HDEL', record_key(run), first .. '!')
  end
end
