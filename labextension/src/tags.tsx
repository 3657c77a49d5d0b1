/** A field for tags, which suggests those that are in use while they are typed. */

import React from 'react';

/** Suggestions that are shown at once. */
const SHOWN = 8;

export function TagField(props: {
  label: string;
  hint: string;
  value: string;
  known: string[];
  set: (text: string) => void;
}): JSX.Element {
  const { label, hint, value, known, set } = props;
  const [open, setOpen] = React.useState(false);
  const [chosen, setChosen] = React.useState(-1);
  const id = React.useId();
  const begun = /[^\s,]*$/.exec(value)?.[0] ?? '';
  const given = new Set(value.split(/[\s,]+/));
  const wanted = begun.replace(/^#/, '').toLowerCase();
  const found = open
    ? known
        .filter(tag => !given.has(tag) && !/[\s,]/.test(tag))
        .filter(tag => tag.toLowerCase().includes(wanted))
        .slice(0, SHOWN)
    : [];
  const take = (tag: string) => {
    set(`${value.slice(0, value.length - begun.length)}${tag} `);
    setChosen(-1);
    setOpen(false);
  };
  const onKey = (event: React.KeyboardEvent) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      setOpen(true);
      const step = event.key === 'ArrowDown' ? 1 : -1;
      setChosen(
        found.length ? (chosen + step + found.length) % found.length : -1
      );
    } else if (event.key === 'Enter' && found[chosen]) {
      event.preventDefault();
      take(found[chosen]);
    } else if (event.key === 'Escape' || event.key === 'Enter') {
      setOpen(false);
      setChosen(-1);
    }
  };
  return (
    <div className="jp-Grid-combo">
      <label className="jp-Grid-field">
        <span>{label}</span>
        <input
          type="text"
          className="jp-mod-styled"
          role="combobox"
          aria-expanded={found.length > 0}
          aria-controls={id}
          aria-autocomplete="list"
          aria-activedescendant={found[chosen] ? `${id}-${chosen}` : undefined}
          placeholder={hint}
          value={value}
          onChange={event => {
            set(event.target.value);
            setOpen(true);
            setChosen(-1);
          }}
          onFocus={() => setOpen(true)}
          onBlur={() => setOpen(false)}
          onKeyDown={onKey}
        />
      </label>
      <ul id={id} role="listbox" aria-label={label} hidden={!found.length}>
        {found.map((tag, index) => (
          <li
            key={index}
            id={`${id}-${index}`}
            role="option"
            aria-selected={index === chosen}
            title={tag}
            // the field would lose the focus, and this list with it
            onMouseDown={event => {
              event.preventDefault();
              take(tag);
            }}
          >
            {tag}
          </li>
        ))}
      </ul>
    </div>
  );
}
