-- The rows that a run asked about once and whose answer could not be read: they are asked once more, in order. Parameters:
-- version_id, setup_id, run_id.
select f.position
from first_positions f
join asked a on a.example_id = f.example_id and a.setup_id = $setup_id
join attempts t on t.attempt_id = a.last_attempt
where f.version_id = $version_id
  and t.run_id = $run_id
  and not a.scored and not a.final and a.answers < 2
order by f.position;
