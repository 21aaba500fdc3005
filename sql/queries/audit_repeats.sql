-- Internal.
-- Of the questions of an audit that a setup has answered twice with a score: how many there are, and how many got the
-- same score both times. Parameters: audit_id, setup_id.
select count(*) as asked, count(*) filter (where a.score = b.score) as same
from audit_pairs p
join results a on a.subject_id = p.changed_id and a.sample = 0
join results b on b.subject_id = p.changed_id and b.sample = 1
where p.audit_id = $audit_id::uuid and p.asked_twice
  and a.setup_id = $setup_id::uuid and b.setup_id = $setup_id::uuid
  and a.score is not null and b.score is not null;
