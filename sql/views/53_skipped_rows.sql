-- One row per unusable row of a file, with the reason and the original row, truncated at 10,000 characters. line is its line in the
-- file, if the format has lines.
create or replace view skipped_rows as
select d.label as dataset, s.position, s.line, s.reason, s.row, s.version_id
from set_aside s
join datasets d using (version_id);
