-- Internal.
-- The newest value that the steps of a grader's attempts noted under a name, as JSON, and when. Parameters: grader_id,
-- path ('$.name').
select json_extract(try_cast(s.facts as json), $path) as value, s.recorded_at
from attempt_steps s
join attempts a using (attempt_id)
where a.grader_id = $grader_id and json_extract(try_cast(s.facts as json), $path) is not null
order by s.recorded_at desc, s.attempt_id, s.step desc
limit 1;
