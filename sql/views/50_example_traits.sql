-- One row per example: properties of its text. output_chars counts characters; with_input is true when the input holds
-- more than white space. java, cpp, csharp and python follow AlpaGasus's keywords (section 6: Java, java, C++, c++,
-- C#, c#, Python, python), looked for in instruction, input and output with this counting rule: the keyword as a word,
-- so that JavaScript, python3 and cPython do not count, while C++11 and C#8 do (only letters, digits and _ before them
-- rule them out). code is true when at least one of the four is there: a row counts once, however many keywords it
-- holds.
create or replace view example_traits as
with texts as (
    select example_id, input, output, concat_ws(chr(10), instruction, input, output) as text
    from examples
),
found as (  -- `contains` goes first because it is ten times as fast as a regular expression
    select
        example_id,
        length(output) as output_chars,
        trim(input, ' ' || chr(9) || chr(10) || chr(13)) <> '' as with_input,
        case when contains(text, 'ava') then regexp_matches(text, '\b[Jj]ava\b') else false end as java,
        case when contains(text, '++') then regexp_matches(text, '\b[Cc]\+\+') else false end as cpp,
        case when contains(text, '#') then regexp_matches(text, '\b[Cc]#') else false end as csharp,
        case when contains(text, 'ython') then regexp_matches(text, '\b[Pp]ython\b') else false end as python
    from texts
)
select example_id, output_chars, with_input, java, cpp, csharp, python, java or cpp or csharp or python as code
from found;
