-- The questions whose newest answer came in this run and is of no use though another may be: it could not be read, or the
-- provider failed or ran out of time. They are asked once more, in order; ask is position * samples + sample.
-- Parameters: version_id, setup_id, since, samples.
select f.position * $samples::bigint + a.sample as ask
from first_positions f
join asked a on a.example_id = f.example_id and a.setup_id = $setup_id
where f.version_id = $version_id
  and a.sample < $samples::bigint
  and not a.scored and not a.final and a.answers < 2
  and a.newest_at >= $since
  and (a.newest_outcome = 'answered' or (a.newest_outcome = 'rejected_free' and a.newest_reason in ('expired', 'server_error', 'rate_limited')))
  and (f.example_id, a.sample) not in (select (example_id, sample) from questions_out where setup_id = $setup_id)
order by ask;
