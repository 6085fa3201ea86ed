-- Which prompts are blobs is stored with them: those that were longer than 64 KiB. The index has all
-- that is asked for, since the column comes after a text that may be large.
ALTER TABLE specs ADD COLUMN prompt_blob TEXT;
UPDATE specs SET prompt_blob = kage_digest(spec ->> '$.prompt')
    WHERE length(CAST(spec AS BLOB)) > 65536 AND length(CAST(spec ->> '$.prompt' AS BLOB)) > 65536;
UPDATE specs SET spec = json_set(spec, '$.prompt_blob', prompt_blob) WHERE prompt_blob IS NOT NULL;
CREATE INDEX specs_in_files ON specs (prompt_blob) WHERE prompt_blob IS NOT NULL;
