-- Internal.
-- The pairs of an audit by kind, as one setup has graded them. Parameters: audit_id, setup_id.
select * from audit_kinds
where audit_id = $audit_id::uuid and setup_id = $setup_id::uuid
order by kind;
