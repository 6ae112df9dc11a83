"""The scripts of the shared index, as Redis runs them. What their keys and values mean stands in `redis_index`.

A holder in a block's value is five bytes: four of slot, one of tiers.
"""

from __future__ import annotations

TAKE = """
-- A pod with nothing, in a new slot, if nobody else writes it: true or false.
-- KEYS: pod, newest slot, live slots. ARGV: owner, lease in ms, complete.
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
local old = redis.call('HGET', KEYS[1], 'slot')
if old then redis.call('ZREM', KEYS[3], old) end
-- Above the clock's seconds, so that a number is new even where the newest one was lost.
local now = redis.call('TIME')
local number = math.max(tonumber(redis.call('GET', KEYS[2]) or 0), tonumber(now[1])) + 1
redis.call('SET', KEYS[2], string.format('%d', number))
local slot = struct.pack('>I4', number % 4294967296)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'slot', slot, 'complete', ARGV[3], 'blocks', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[3], now[1] * 1000 + ARGV[2], slot)
return 1
"""

RENEW = """
-- Go on writing a pod: true or false. KEYS: pod, live slots. ARGV: owner, lease in ms.
local now = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (now[1] - 1) * 1000)
local pod = redis.call('HMGET', KEYS[1], 'owner', 'slot')
if pod[1] ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], now[1] * 1000 + ARGV[2], pod[2])
return 1
"""

DROP = """
-- Leave a pod: true or false. KEYS: pod, live slots. ARGV: owner.
local pod = redis.call('HMGET', KEYS[1], 'owner', 'slot')
if pod[1] ~= ARGV[1] then return 0 end
redis.call('ZREM', KEYS[2], pod[2])
redis.call('DEL', KEYS[1])
return 1
"""

APPLY = """
-- Change who holds blocks. KEYS: pod, live slots.
-- ARGV: owner, prefix of blocks, their time in ms, most of them, is it complete ('' as before), keys, codes.
-- -1: another one writes the pod; else how many blocks were one too many.
local pod = redis.call('HMGET', KEYS[1], 'owner', 'slot', 'blocks')
if pod[1] ~= ARGV[1] then return -1 end
local slot, blocks, most, refused = pod[2], tonumber(pod[3]), tonumber(ARGV[4]), 0
local prefix, ttl, keys, codes = ARGV[2], ARGV[3], ARGV[6], ARGV[7]
local live, memo = nil, {}
local sub, byte, char = string.sub, string.byte, string.char

local function is_live(other)
  if not live then
    live = {}
    for _, each in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do live[each] = true end
  end
  return live[other]
end

-- The value after a code, and how many blocks the pod has more. Holders that are gone are left out.
local function changed(old, code)
  local word = char(code) .. old
  local known = memo[word]
  if known then return known[1], known[2] end
  local kept, mine, place = {}, 0, nil
  for at = 1, #old, 5 do
    local holder = sub(old, at, at + 3)
    if holder == slot then
      mine = byte(old, at + 4)
      kept[#kept + 1] = ''
      place = #kept
    elseif is_live(holder) then
      kept[#kept + 1] = sub(old, at, at + 4)
    end
  end
  local tiers = bit.bor(bit.band(mine, bit.bnot(bit.rshift(code, 4))), bit.band(code, 15))
  if tiers > 0 then kept[place or #kept + 1] = slot .. char(tiers) end
  local new = table.concat(kept)
  local more = (tiers > 0 and 1 or 0) - (mine > 0 and 1 or 0)
  memo[word] = {new, more}
  return new, more
end

local names = {}
for at = 1, #keys, 8 do names[#names + 1] = prefix .. sub(keys, at, at + 7) end
local values = #names > 0 and redis.call('MGET', unpack(names)) or {}
for number, name in ipairs(names) do
  local old = values[number] or ''
  local new, more = changed(old, byte(codes, number))
  if more > 0 and blocks >= most then
    refused = refused + 1
  else
    blocks = blocks + more
    if new ~= '' then
      redis.call('SET', name, new, 'PX', ttl)
    elseif old ~= '' then
      redis.call('DEL', name)
    end
  end
end
redis.call('HSET', KEYS[1], 'blocks', blocks)
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'complete', ARGV[5]) end
return refused
"""

MATCH = """
-- Which tiers hold a chain's blocks. KEYS: pods. ARGV: prefix of blocks, keys.
-- For each pod nil where it is not known, else {start, tiers, start, tiers, ..., end}; {0} if it holds nothing.
local answer, of_slot, open, left = {}, {}, {}, 0
for number, name in ipairs(KEYS) do
  local pod = redis.call('HMGET', name, 'slot', 'complete')
  if pod[2] == '1' then
    answer[number], open[number], of_slot[pod[1]] = {}, 0, number
    left = left + 1
  else
    answer[number] = false
  end
end
local sub, byte = string.sub, string.byte
local memo = {}

local function tiers_of(value)
  local tiers = memo[value]
  if tiers then return tiers end
  tiers = {}
  for at = 1, #value, 5 do
    local number = of_slot[sub(value, at, at + 3)]
    if number then tiers[number] = byte(value, at + 4) end
  end
  memo[value] = tiers
  return tiers
end

local prefix, keys = ARGV[1], ARGV[2]
local count, done, size, last = #keys / 8, 0, 64, nil
while done < count and left > 0 do
  local names = {}
  for block = done, math.min(done + size, count) - 1 do
    names[#names + 1] = prefix .. sub(keys, block * 8 + 1, block * 8 + 8)
  end
  for place, value in ipairs(redis.call('MGET', unpack(names))) do
    value = value or ''
    if value ~= last then
      last = value
      local tiers, block = tiers_of(value), done + place - 1
      for number, before in pairs(open) do
        local now, runs = tiers[number], answer[number]
        if not now then
          runs[#runs + 1] = block
          open[number] = nil
          left = left - 1
        elseif now ~= before then
          runs[#runs + 1], runs[#runs + 2] = block, now
          open[number] = now
        end
      end
      if left == 0 then break end
    end
  end
  done, size = done + #names, 1000
end
for number in pairs(open) do answer[number][#answer[number] + 1] = count end
return answer
"""
