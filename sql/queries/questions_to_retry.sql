-- Internal.
-- The questions whose newest answer came in this run and is of no use though another may be: it was not usable, or the
-- provider failed or ran out of time. They are asked once more, in order; question is position * samples + sample.
-- Parameters: source_id, setup_id, since, samples.
select i.position * $samples::bigint + a.sample as question
from source_items i
join question_status a on a.subject_id = i.subject_id and a.setup_id = $setup_id
where i.source_id = $source_id
  and a.sample < $samples::bigint
  and not a.done and not a.final and a.answers < 2
  and a.newest_at >= $since
  and (
      a.newest_outcome = 'answered'
      or (a.newest_outcome = 'rejected_free' and a.newest_reason in ('expired', 'server_error', 'rate_limited'))
  )
  and (i.subject_id, a.sample) not in (select (subject_id, sample) from questions_in_flight where setup_id = $setup_id)
order by question;
