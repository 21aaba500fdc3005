-- Which rows kept_rows holds: fingerprint is the sha256 of their sorted example ids, a line each, and
-- positions_sha256 that of their sorted positions. Parameters: none.
select
    sha256(string_agg(example_id::varchar, chr(10) order by example_id::varchar)) as fingerprint,
    sha256(string_agg(position::varchar, chr(10) order by position)) as positions_sha256
from kept_rows;
